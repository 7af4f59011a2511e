"""Configs of methods that do the same in each of some layers."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pumer.reducers.base import Place, Reducer, ReductionConfig, check_distinct, check_layers, check_ratios
from pumer.utils.errors import InputError


@dataclass(frozen=True, kw_only=True)
class LayeredConfig(ReductionConfig):
    """Which layers reduce.

    Attributes:
        layers: 0-based layers.
        stack: "fusion" for the cross-modal layers, "vision" for those of a vision encoder.

    Raises:
        InputError: For a layer that is repeated or negative, and for none at all.
    """

    layers: tuple[int, ...] = ()
    stack: Literal["fusion", "vision"] = "fusion"

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_layers(self.layers, "the reduction")
        if not self.layers:
            raise InputError("no layer reduces; give layers=[2, 5, 8], or method 'none'")
        if self.stack not in ("fusion", "vision"):
            raise InputError(f"stack {self.stack!r} is unknown; give 'fusion' or 'vision'")
        object.__setattr__(self, "layers", tuple(sorted(self.layers)))
        check_distinct(self.places())
        check_ratios(self, "the reduction")

    def places(self) -> list[Place]:
        """The layers."""
        return [(self.stack, layer) for layer in self.layers]

    def reducers(self) -> dict[Place, Reducer]:
        """One reducer per layer; none where nothing is removed."""
        return {place: reducer for place in self.places() if (reducer := self.reducer(place)) is not None}

    def reducer(self, place: Place) -> Reducer | None:
        """The reducer of one layer, or None if it removes nothing."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class PruningConfig(LayeredConfig):
    """Which layers prune, and how much.

    Attributes:
        prune_ratio: Fraction of the real image tokens that enter the reducer to prune, in [0, 1); [CLS] is counted
            among them and stays.
    """

    prune_ratio: float = 0.0

    amounts: ClassVar[tuple[str, ...]] = ("prune_ratio",)

    def kept(self, n: int) -> int:
        """Image tokens left of ``n``."""
        return n - max(min(round(self.prune_ratio * n), n - 1), 0)

    def image_counts(self, n: int) -> tuple[int, int]:
        """See `pumer.reducers.tables.Rule`."""
        return self.kept(n), 0

    def text_counts(self, n: int) -> tuple[int, int]:
        """See `pumer.reducers.tables.Rule`."""
        return n, 0
