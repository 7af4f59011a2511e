"""What every reduction method provides: a config the user writes, and one reducer per reducing layer."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol

from pydantic import AfterValidator, Field
from torch import Tensor

from pumer import functional, kernels
from pumer.reducers.cues import Cues
from pumer.tokens import Decision
from pumer.utils.config import config
from pumer.utils.errors import InputError

Place = tuple[str, int]
"""A stack of layers ("fusion", "vision" or "decoder") and a 0-based layer of it."""

Layer = Annotated[int, Field(ge=0)]
Ratio = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0)]

KEYS, STATES = "keys", "states"
TEXT_ROWS, CLS_ROW, LAST_ROW, SAMPLED_ROWS = "text_rows", "cls_row", "last_row", "sampled_rows"
ROWS = frozenset({TEXT_ROWS, CLS_ROW, LAST_ROW, SAMPLED_ROWS})
"""The needs for whose sake an adapter hands out queries: rows of the layer's attention, by the method of `Cues`."""


class Reducer(Protocol):
    """Decides what becomes of the tokens in one layer, between its attention and its feed-forward part."""

    @property
    def needs(self) -> frozenset[str]:
        """What it looks at: `KEYS`, `STATES` and `ROWS`; an adapter hands out nothing else."""

    def decide(self, cues: Cues) -> Decision:
        """Decide about text and image.

        Args:
            cues: What the layer's attention shows; called without gradients, unless the reducer is a module, and has
                weights to learn.
        """


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float = 0.0) -> Tensor:
    """`functional.attention`, or the same from a kernel that is faster where keys have a bias; see there."""
    if bias is not None and dropout == 0 and kernels.attends(query):
        return kernels.attention(query, key, value, bias)
    return functional.attention(query, key, value, bias, dropout)


class Attention(NamedTuple):
    """How the layers of a model attend.

    Attributes:
        attend: From queries, keys, values, bias and dropout to the context, see `functional.attention`.
        probabilities: Of a few query rows, see `functional.attention_probabilities`.
    """

    attend: Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor] = attention
    probabilities: Callable[[Tensor, Tensor, Tensor | None], Tensor] = functional.attention_probabilities


def _shortening(value: Any) -> Any:
    """Refuse what does not shorten prompts."""
    if value is not None and (not isinstance(value, ReductionConfig) or "prompt" not in value.stacks):
        raise ValueError(f"must be the config of a method that shortens prompts, such as divprune, not {value!r}")
    return value


@config
class ReductionConfig:
    """Base of all configs: how a model is reduced. Immutable, checked when built.

    Attributes:
        max_image_tokens: Patch slots of the image buffer, [CLS] not counted; None for the padded grid. 228 holds
            whatever transformers' ViLT processor yields at 384 px. An image with more patches is refused; looking
            for one is all that a forward waits for on a GPU.
        image_tokens: In a decoder, the image tokens of every prompt, where all have as many; only a graph of the prompt
            (``torch.export``, a compiled prompt) needs it, which cannot count them.
        before: Of a generative model, how its prompts are shortened before the decoder: the config of a method that
            does so; see `pumer.shorten`.
    """

    max_image_tokens: Annotated[int, Field(ge=1)] | None = None
    image_tokens: Annotated[int, Field(ge=1)] | None = None
    before: Annotated[Any, AfterValidator(_shortening)] = None

    method: ClassVar[str]
    version: ClassVar[int] = 1
    amounts: ClassVar[tuple[str, ...]] = ()
    """The settings that say how much each of its ``layers`` removes."""
    stacks: ClassVar[tuple[str, ...]] = ("fusion", "vision", "decoder")
    """The stacks in which it can reduce."""
    prunes: ClassVar[bool] = False
    """Whether nothing is left of some tokens, wherever it reduces."""
    attention: ClassVar[Attention] = Attention()
    """That of every layer of a model patched with this method."""

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
        """Refuse what a model has too few tokens for.

        Args:
            tokens: Of each stack: tokens that a reduction can choose from, of an image of the model's size.
        """


@config
class NoReduction(ReductionConfig):
    """No reduction at all, on the fast path: the unreduced model that a speed-up is quoted against."""

    method: ClassVar[str] = "none"

    def reducers(self) -> dict[Place, Reducer]:
        """None."""
        return {}


def check_distinct(places: list[Place]) -> None:
    """Refuse a layer that is named twice."""
    repeated = sorted({place for place in places if places.count(place) > 1})
    if repeated:
        stack, layer = repeated[0]
        raise InputError(f"{stack} layer {layer} is named {places.count(repeated[0])} times; name each layer once")
