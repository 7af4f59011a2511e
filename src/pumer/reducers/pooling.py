"""Uniform average pooling: neighbouring patches are averaged, whatever they show."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from pumer.reducers.base import Place, Reducer
from pumer.reducers.cues import Cues
from pumer.reducers.decisions import counts, keep_all, words_stay
from pumer.reducers.layered import LayeredConfig
from pumer.reducers.tables import tables
from pumer.tokens import GONE, Decision


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

    def image_counts(self, n: int) -> tuple[int, int]:
        """See `pumer.reducers.tables.Rule`."""
        return n, self.merges(n)

    def text_counts(self, n: int) -> tuple[int, int]:
        """See `pumer.reducers.tables.Rule`."""
        return n, 0

    def reducer(self, place: Place) -> Reducer | None:
        """The same in every layer."""
        return Pooler(self) if self.merge_ratio else None


@dataclass(frozen=True)
class Pooler:
    """The pooling of one layer: of the pairs (1, 2), (3, 4), ... every so many-th; [CLS] is rank 0."""

    config: PoolingConfig
    needs: ClassVar[frozenset[str]] = frozenset()

    def decide(self, cues: Cues) -> Decision:
        """Merge neighbours; text stays."""
        found = tables(self.config, *cues.tokens.slots, cues.tokens.size.device)
        if not found.merges_image:
            return keep_all(cues)
        count = counts(found, cues.tokens.lengths)
        length, merges, left, _ = count[:, 1, :, None].unbind(dim=1)
        pairs = ((length - 1) // 2).clamp(min=1)
        rank = found.rank[: found.image]
        pair = (rank - 1) // 2  # of the k-th merged pair: k * pairs // merges
        first = (pair * merges + pairs - 1) // pairs  # the least k whose pair is this one or later
        chosen = (first < merges) & (first * pairs // merges.clamp(min=1) == pair)
        merged = chosen & (rank % 2 == 0) & (rank > 0) & (pair < pairs)
        slot = rank - merged.cumsum(dim=1) + found.text_left
        code = torch.where(rank < length, 2 * slot + merged, GONE)
        return words_stay(cues, found, code, left[:, 0])
