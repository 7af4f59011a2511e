"""Configs of methods that do the same in each of some layers: each is the reducer of all its layers."""

from typing import ClassVar, Literal

from torch import Tensor

from pumer.reducers.base import Layer, Place, Ratio, Reducer, ReductionConfig, check_distinct
from pumer.reducers.cues import Cues
from pumer.reducers.decisions import prune_to
from pumer.reducers.tables import Rule, pruned
from pumer.tokens import Decision
from pumer.utils.config import config
from pumer.utils.errors import InputError


@config
class LayeredConfig(Rule, ReductionConfig):
    """Which layers reduce, and what becomes of the tokens there; see `pumer.reducers.base.Reducer`.

    Attributes:
        layers: 0-based layers.
        stack: "fusion" for the cross-modal layers, "vision" for those of a vision encoder, "decoder" for those of a
            generative model.

    Raises:
        InputError: For a layer that is repeated or negative, and for none at all.
    """

    layers: tuple[Layer, ...] = ()
    stack: Literal["fusion", "vision", "decoder"] = "fusion"

    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        """Check and sort the layers."""
        if not self.layers:
            raise InputError("layers is empty, so that no layer reduces; give layers=[2, 5, 8], or method 'none'")
        object.__setattr__(self, "layers", tuple(sorted(self.layers)))
        check_distinct(self.places())

    def places(self) -> list[Place]:
        """The layers."""
        return [(self.stack, layer) for layer in self.layers]

    def reducers(self) -> dict[Place, Reducer]:
        """The config itself in each layer; none where nothing is removed."""
        removes = any(getattr(self, amount) for amount in self.amounts)
        return dict.fromkeys(self.places(), self) if removes else {}

    def decide(self, cues: Cues) -> Decision:
        """Decide about text and image in one of the layers."""
        raise NotImplementedError


@config
class PruningConfig(LayeredConfig):
    """Which layers prune, and how much.

    Attributes:
        prune_ratio: Fraction of the real image tokens that enter the reducer to prune, in [0, 1); [CLS] is counted
            among them and stays.
    """

    prune_ratio: Ratio = 0.0

    amounts: ClassVar[tuple[str, ...]] = ("prune_ratio",)
    prunes: ClassVar[bool] = True

    def kept(self, n: int) -> int:
        """Image tokens left of ``n``."""
        return n - pruned(self.prune_ratio, n)


@config
class ScoringConfig(PruningConfig):
    """A method that keeps the image tokens with the highest scores, and the text: one function says which."""

    def score(self, cues: Cues) -> Tensor:
        """From what the ``needs`` name to ``(B, V)``, whatever padding gets; ties go to the lower rank."""
        raise NotImplementedError

    def decide(self, cues: Cues) -> Decision:
        """Prune image tokens; text stays."""
        return prune_to(cues, self, self.score(cues))
