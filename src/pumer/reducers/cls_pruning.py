"""Pruning by the attention of the image's own [CLS], whatever the text; EViT keeps what it prunes in one token."""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from pumer.functional import ordered
from pumer.reducers.base import CLS_ROW
from pumer.reducers.cues import Cues
from pumer.reducers.decisions import counts, keep_all, protected, tables_of, text_stays
from pumer.reducers.layered import ScoringConfig
from pumer.tokens import GONE, Decision
from pumer.utils.config import config


@config
class ClsPruningConfig(ScoringConfig):
    """Prune the image tokens that the image's [CLS] attends to least.

    In METER's text layers no [CLS] of the image asks: there its state asks through the layer's query projection.
    """

    method: ClassVar[str] = "cls"
    stacks: ClassVar[tuple[str, ...]] = ("fusion", "vision")
    needs: ClassVar[frozenset[str]] = frozenset({CLS_ROW})

    def score(self, cues: Cues) -> Tensor:
        """Attention of [CLS], averaged over heads."""
        return cues.cls_row().mean(dim=1)


@config
class EViTConfig(ClsPruningConfig):
    """As `cls`, and what is pruned is fused into one more token, by its attention (EViT, Liang et al., ICLR 2022).

    Differs from the paper: the fused token stands where the most attentive of its parts stood, so that order is kept,
    and its weights add up to one, so that its scale is that of a token.
    """

    method: ClassVar[str] = "evit"
    prunes: ClassVar[bool] = False

    def kept(self, n: int) -> int:
        """All of ``n``: none is gone, some are in another one's slot."""
        return n

    def merges(self, n: int) -> int:
        """Tokens of ``n`` that are pruned, but the one that holds them."""
        return max(n - super().kept(n) - 1, 0)

    def decide(self, cues: Cues) -> Decision:
        """Fuse what is not attentive into the slot of its most attentive token; text stays."""
        found, mask = tables_of(cues, self), cues.image_mask
        if not found.merges_image:
            return replace(keep_all(cues), proportional=False)
        saliency, stay = self.score(cues), protected(cues, found) & mask
        _, fused, left, _ = counts(found, cues.tokens.lengths)[:, 1].unbind(dim=1)
        attentive = torch.maximum(left - fused.clamp(max=1), stay.sum(dim=1))
        scores = saliency.masked_fill(~mask, -1).masked_fill(stay, torch.inf)
        beyond = found.rank[: found.image] >= attentive[:, None]
        lost = torch.empty_like(beyond).scatter_(1, ordered(scores, descending=True), beyond)
        strongest = scores.masked_fill(~lost, -1).argmax(dim=1, keepdim=True)
        stands = (~lost).scatter_(1, strongest, 1)  # and padding, whose code comes last
        code = 2 * (stands.cumsum(dim=1) + found.text_left - 1)
        code = torch.where(stands, code, code.gather(1, strongest) + 1).masked_fill(~mask, GONE)
        weight = cues.spread(saliency, 1).clamp(min=torch.finfo(saliency.dtype).tiny)
        left = (stands & mask).sum(dim=1)
        return replace(text_stays(cues, found, code, left), weight=weight, proportional=False)
