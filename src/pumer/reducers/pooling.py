"""Uniform average pooling: neighbouring patches are averaged, whatever they show."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from pumer.functional import tabulate
from pumer.reducers.base import Place, Reducer
from pumer.reducers.decisions import everything, join_pairs, only
from pumer.reducers.layered import LayeredConfig
from pumer.tokens import Cues, Decision


@dataclass(frozen=True, kw_only=True)
class PoolingConfig(LayeredConfig):
    """Average some image tokens with the next one in raster order, evenly spread over the picture.

    Attributes:
        merge_ratio: Fraction of the real image tokens, [CLS] counted, to merge away, in [0, 1); at most half of them.
    """

    merge_ratio: float = 0.0

    method: ClassVar[str] = "pooling"
    amounts: ClassVar[tuple[str, ...]] = ("merge_ratio",)

    def merges(self, n: int) -> int:
        """Image tokens merged away of ``n``."""
        return max(min(round(self.merge_ratio * n), (n - 1) // 2), 0)

    def left(self, n: int) -> int:
        """Image tokens left of ``n``."""
        return n - self.merges(n)

    def reducer(self, place: Place) -> Reducer | None:
        """The same in every layer."""
        return Pooler(self) if self.merge_ratio else None


@dataclass(frozen=True)
class Pooler:
    """The pooling of one layer: of the pairs (1, 2), (3, 4), ... every so many-th; [CLS] is rank 0."""

    config: PoolingConfig
    needs: ClassVar[frozenset[str]] = frozenset()

    def decide(self, cues: Cues) -> tuple[Decision, Decision]:
        """Merge neighbours; text stays."""
        mask = cues.image.mask
        lengths, slots = mask.sum(dim=1), mask.shape[1]
        count, most = tabulate(self.config.merges, lengths, slots)
        text = Decision.identity(cues.text.mask)
        if most == 0:
            return text, only(everything(mask), slots)
        number = torch.arange(most, device=mask.device)
        happens = number < count[:, None]
        pairs = ((lengths - 1) // 2)[:, None]
        first = 2 * (number * pairs // count[:, None].clamp(min=1)) + 1
        source, target = torch.where(happens, first + 1, 0), torch.where(happens, first, 0)
        return text, join_pairs(everything(mask), (source, target, happens), self.config.left, lengths, slots)
