"""Pruning by the attention of the image's own [CLS], blind to the text; EViT keeps what it prunes in one token."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from pumer.functional import ordered
from pumer.reducers.base import CLS_ROW, Place, Reducer
from pumer.reducers.cues import Cues
from pumer.reducers.decisions import counts, keep_all, prune_to, words_stay
from pumer.reducers.layered import PruningConfig
from pumer.reducers.tables import tables
from pumer.tokens import GONE, Decision


@dataclass(frozen=True, kw_only=True)
class ClsPruningConfig(PruningConfig):
    """Prune the image tokens that the image's [CLS] attends to least.

    In METER's text layers no [CLS] of the image asks: there its state asks through the layer's query projection.
    """

    method: ClassVar[str] = "cls"

    def reducer(self, place: Place) -> Reducer | None:
        """The same in every layer."""
        return ClsPruner(self) if self.prune_ratio else None


@dataclass(frozen=True, kw_only=True)
class EViTConfig(ClsPruningConfig):
    """EViT (Liang et al., ICLR 2022): the same, and what is pruned is fused into one more token, by its attention.

    Differs from the paper: the fused token stands where the most attentive of its parts stood, so that order is kept,
    and its weights add up to one, so that its scale is that of a token.
    """

    method: ClassVar[str] = "evit"

    def pruned(self, n: int) -> int:
        """Image tokens of ``n`` that are pruned."""
        return n - self.kept(n)

    def fused(self, n: int) -> int:
        """Of them, those that end in another one's slot."""
        return max(self.pruned(n) - 1, 0)

    def left(self, n: int) -> int:
        """Image tokens left of ``n``, the fused one counted."""
        return n - self.fused(n)

    def image_counts(self, n: int) -> tuple[int, int]:
        """See `pumer.reducers.tables.Rule`: none is gone, some are in another one's slot."""
        return n, self.fused(n)

    def reducer(self, place: Place) -> Reducer | None:
        """The same in every layer."""
        return EViTReducer(self) if self.prune_ratio else None


@dataclass(frozen=True)
class ClsPruner:
    """The pruning of one layer."""

    config: ClsPruningConfig
    needs: ClassVar[frozenset[str]] = frozenset({CLS_ROW})

    def decide(self, cues: Cues) -> Decision:
        """Prune image tokens; text stays."""
        return prune_to(cues, self.config, _saliency(cues))


@dataclass(frozen=True)
class EViTReducer:
    """The pruning and fusing of one layer."""

    config: EViTConfig
    needs: ClassVar[frozenset[str]] = frozenset({CLS_ROW})

    def decide(self, cues: Cues) -> Decision:
        """Fuse what is not attentive into the slot of its most attentive token; text stays."""
        found = tables(self.config, *cues.tokens.slots, cues.tokens.size.device)
        if not found.merges_image:
            return replace(keep_all(cues), proportional=False)
        count, mask, saliency = counts(found, cues.tokens.lengths), cues.image_mask, _saliency(cues)
        _, merged, left, _ = count[:, 1].unbind(dim=1)
        scores = saliency[:, 1:].masked_fill(~mask[:, 1:], -1)
        beyond = found.rank[1 : found.image] >= (left - merged.clamp(max=1))[:, None]
        lost = torch.empty_like(beyond).scatter_(1, ordered(scores, descending=True), beyond)
        strongest = scores.masked_fill(~lost, -1).argmax(dim=1, keepdim=True)
        stands = (~lost).scatter_(1, strongest, 1)  # and padding, whose code comes last
        code = 2 * (stands.cumsum(dim=1) + found.text_left)
        code = torch.where(stands, code, code.gather(1, strongest) + 1).masked_fill(~mask[:, 1:], GONE)
        code = torch.cat([found.code[1, :1].expand(code.shape[0], 1), code], dim=1)
        weight = torch.cat([torch.ones_like(cues.text_mask, dtype=saliency.dtype), saliency], dim=1)
        return replace(
            words_stay(cues, found, code, left),
            weight=weight.clamp(min=torch.finfo(saliency.dtype).tiny),
            proportional=False,
        )


def _saliency(cues: Cues) -> Tensor:
    """``(B, V)``: attention of [CLS], averaged over heads."""
    return cues.cls_row().mean(dim=1)
