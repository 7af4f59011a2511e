"""What every reduction method provides: a config the user writes, and one reducer per reducing layer."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol

from torch import Tensor

from pumer import functional, kernels
from pumer.reducers.cues import Cues
from pumer.tokens import Decision
from pumer.utils.errors import InputError

Place = tuple[str, int]
"""A stack of layers ("fusion" or "vision") and a 0-based layer of it."""

KEYS = "keys"
TEXT_ROWS = "text_rows"
CLS_ROW = "cls_row"
STATES = "states"


class Reducer(Protocol):
    """Decides what becomes of the tokens in one layer, between its attention and its feed-forward part."""

    @property
    def needs(self) -> frozenset[str]:
        """The cues it looks at, of those in `Cues`, by name; an adapter hands out no others."""

    def decide(self, cues: Cues) -> Decision:
        """Decide about text and image.

        Args:
            cues: What the layer's attention shows; called without gradients, unless it is a module,
                and has weights to learn.
        """


@dataclass(frozen=True, kw_only=True)
class ReductionConfig:
    """Base of all configs: how a model is reduced. Immutable, checked when built.

    Attributes:
        max_image_tokens: Patch slots of the image buffer, [CLS] not counted; None for the padded grid. 228 holds
            whatever transformers' ViLT processor yields at 384 px. An image with more patches is refused; looking
            for one is all that a forward waits for on a GPU.
    """

    max_image_tokens: int | None = None

    method: ClassVar[str]
    version: ClassVar[int] = 1
    amounts: ClassVar[tuple[str, ...]] = ()
    """The settings that say how much each of its ``layers`` removes."""

    def __post_init__(self) -> None:
        """Check what is common to all methods."""
        most = self.max_image_tokens
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise InputError(f"max_image_tokens is {most!r}; give an integer above 0, or None")

    def reducers(self) -> dict[Place, Reducer]:
        """The reducer of each reducing layer."""
        raise NotImplementedError

    def learned(self, widths: Mapping[str, int]) -> dict[Place, Reducer]:
        """Fresh reducers that are modules with weights to learn, of a method that has such.

        Args:
            widths: ``D`` of each stack.
        """
        return {}

    def places(self) -> list[Place]:
        """Every layer the config names, whether something is removed there or not."""
        return sorted(self.reducers())

    def check_tokens(self, tokens: Mapping[str, int]) -> None:
        """Refuse what a model cannot do for want of tokens.

        Args:
            tokens: Of each stack: tokens that a reduction can choose from, of a picture of the model's size.
        """

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
        """The attention of every layer of the patched model; see `attention`."""
        return attention(query, key, value, bias, dropout)

    def probabilities(self, query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
        """Attention probabilities of the first rows; see `functional.attention_probabilities`."""
        return functional.attention_probabilities(query, key, bias)


@dataclass(frozen=True, kw_only=True)
class NoReduction(ReductionConfig):
    """No reduction at all, on the fast path: the unreduced opponent that a speed-up is quoted against."""

    method: ClassVar[str] = "none"

    def reducers(self) -> dict[Place, Reducer]:
        """None."""
        return {}


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float = 0.0) -> Tensor:
    """`functional.attention`, or the same from a kernel that is faster where keys have a bias; see there."""
    if bias is not None and dropout == 0 and kernels.attends(query):
        return kernels.attention(query, key, value, bias)
    return functional.attention(query, key, value, bias, dropout)


def check_ratios(config: object, where: str) -> None:
    """Refuse a field whose name ends in ``_ratio`` and whose value is not in [0, 1).

    Args:
        config: Any dataclass.
        where: What the message calls it.

    Raises:
        InputError: Naming the field, its value and the range.
    """
    for field in fields(config):  # type: ignore[arg-type]
        if not field.name.endswith("_ratio"):
            continue
        value = getattr(config, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise InputError(
                f"{field.name} of {where} is {value!r}; give the fraction to remove, from 0 up to but not including 1"
            )


def check_layers(layers: object, where: str) -> None:
    """Refuse what is not a sequence of layers."""
    if not isinstance(layers, list | tuple):
        raise InputError(f"layers of {where} is {layers!r}; give a sequence of integers, such as (2, 5, 8)")
    for layer in layers:
        check_layer(layer, where)


def check_layer(layer: object, where: str) -> None:
    """Refuse a layer that is not an integer from 0 on (whether the model has it, `patch` checks)."""
    if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
        raise InputError(f"layer {layer!r} of {where} is not a layer; give an integer from 0 on")


def check_distinct(places: list[Place]) -> None:
    """Refuse a layer that is named twice."""
    repeated = sorted({place for place in places if places.count(place) > 1})
    if repeated:
        stack, layer = repeated[0]
        raise InputError(f"{stack} layer {layer} is named {places.count(repeated[0])} times; name each layer once")
