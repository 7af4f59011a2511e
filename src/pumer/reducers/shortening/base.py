"""What every method that shortens a prompt provides: a choice among the tokens of one image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pumer.functional import HALF, ordered
from pumer.reducers.base import Place, Ratio, Reducer, ReductionConfig
from pumer.reducers.tables import pruned
from pumer.utils.config import config
from pumer.utils.errors import InputError


@dataclass(frozen=True)
class ImageTokens:
    """The tokens of one image, of several tiles or of a video, in the order of their placeholders, and the words.

    Attributes:
        features: ``(n, D)``, as they would enter the language model.
        text: ``(t, D)``, embeddings of the words of the same prompt, special tokens left out.
        cell: ``(n, 3)`` int64: tile or frame, row and column of each token; -1 for tokens that stand nowhere, such as
            ends of rows.
        states: Gives ``(n, Dv)``, what the vision encoder shows at the same places, averaged where several patches
            became one token.
        key: Gives ``(n, Dk)``, keys of the vision encoder's second to last layer, averaged over heads and patches.
        attention: Gives ``(n,)``, how much attention a token gets there: from [CLS] where the encoder has one, else
            from evenly spaced patches.
    """

    features: Tensor
    text: Tensor
    cell: Tensor
    states: Callable[[], Tensor]
    key: Callable[[], Tensor]
    attention: Callable[[], Tensor]


@dataclass(frozen=True)
class Choice:
    """What stays of an image.

    Attributes:
        index: ``(k,)`` int64, ascending: the tokens whose places and positions stay.
        features: ``(k, D)`` for them, where others were merged into them; None: their own.
        group: ``(n,)`` int64, the token that holds each token (itself if it stays), -1 if it is gone.
    """

    index: Tensor
    group: Tensor
    features: Tensor | None = None

    @classmethod
    def of(cls, kept: Tensor, n: int) -> "Choice":
        """The choice that keeps some tokens of ``n`` as they are, and drops the others.

        Args:
            kept: ``(k,)`` int64, in any order.
            n: Tokens.
        """
        index = kept.sort()[0]
        group = torch.full((n,), -1, device=kept.device)
        return cls(index, group.index_copy(0, index, index))

    @classmethod
    def merged(cls, group: Tensor, features: Tensor, count: int | None = None) -> "Choice":
        """The choice in which each token that stays becomes the mean of those that it holds.

        Args:
            group: ``(n,)`` int64, the token that holds each token: itself if it stays, -1 if it is gone.
            features: ``(n, D)``.
            count: How many stay, where that is no question of data, as a graph needs it.
        """
        stays = group == torch.arange(len(group), device=group.device)
        index = stays.nonzero()[:, 0] if count is None else ordered(~stays[None])[0, :count]
        holds = group == index[:, None]
        size, own = holds.sum(dim=1, keepdim=True), features[index]
        x = wide(features)
        mean = (holds.to(x.dtype) @ x / size).to(features.dtype)
        return cls(index, group, torch.where(size > 1, mean, own))


def wide(x: Tensor) -> Tensor:
    """The same numbers, in float32 where they are of half precision."""
    return x.float() if x.dtype in HALF else x


def largest(score: Tensor, count: int) -> Tensor:
    """The tokens ``(count,)`` int64 with the largest of ``score (n,)``, the largest first; ties to the lower index."""
    return ordered(score[None], descending=True)[0, :count]


@config
class ShorteningConfig(ReductionConfig):
    """A method that shortens prompts before the decoder; see `pumer.shorten`."""

    stacks: ClassVar[tuple[str, ...]] = ("prompt",)
    prunes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a second method."""
        if self.before is not None:
            raise InputError(f"before is '{self.before.method}', but prompts are shortened once; leave it out")

    def reducers(self) -> dict[Place, Reducer]:
        """None: no layer is changed."""
        return {}

    def choose(self, image: ImageTokens) -> Choice:
        """Decide about one image; the same tokens give the same choice, whatever else is in the batch.

        Args:
            image: Its tokens.
        """
        raise NotImplementedError


@config
class RatioShorteningConfig(ShorteningConfig):
    """Base of the methods that are given how much to remove.

    Attributes:
        prune_ratio: Fraction of the tokens of each image to remove, in [0, 1).
    """

    prune_ratio: Ratio = 0.0

    amounts: ClassVar[tuple[str, ...]] = ("prune_ratio",)

    def kept(self, n: int) -> int:
        """Tokens left of an image of ``n``."""
        return n - pruned(self.prune_ratio, n)
