"""Uniform average pooling: neighbouring patches are averaged, whatever they show."""

from typing import ClassVar

import torch
from torch.nn.functional import pad

from pumer.reducers.base import Ratio
from pumer.reducers.cues import Cues
from pumer.reducers.decisions import counts, keep_all, protected, tables_of, text_stays
from pumer.reducers.layered import LayeredConfig
from pumer.reducers.tables import mergeable
from pumer.tokens import GONE, Decision
from pumer.utils.config import config


@config
class PoolingConfig(LayeredConfig):
    """Average some image tokens with the next one in raster order, evenly spread over the image.

    Attributes:
        merge_ratio: Fraction of the real image tokens, [CLS] counted, to merge away, in [0, 1); at most half of them.
    """

    merge_ratio: Ratio = 0.0

    method: ClassVar[str] = "pooling"
    amounts: ClassVar[tuple[str, ...]] = ("merge_ratio",)

    def merges(self, n: int) -> int:
        """Image tokens merged away of ``n``."""
        return mergeable(round(self.merge_ratio * n), n)

    def decide(self, cues: Cues) -> Decision:
        """Merge every so many-th of the pairs of ranks (1, 2), (3, 4), ...; rank 0 and the text stay."""
        found = tables_of(cues, self)
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
        if cues.tokens.segments is not None:
            stay = protected(cues, found)
            merged = merged & ~(stay | pad(stay, (1, -1)))
            left = length - merged.sum(dim=1, keepdim=True)
        slot = rank - merged.cumsum(dim=1) + found.text_left
        code = torch.where(rank < length, 2 * slot + merged, GONE)
        return text_stays(cues, found, code, left[:, 0])
