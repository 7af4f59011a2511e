"""Pruning by the attention of the image's own [CLS], blind to the text; EViT keeps what it prunes in one token."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pumer.functional import prune, tabulate
from pumer.reducers.base import CLS_ROW, Place, Reducer
from pumer.reducers.decisions import everything, join_pairs, keep, only
from pumer.reducers.layered import PruningConfig
from pumer.tokens import Cues, Decision


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

    def reducer(self, place: Place) -> Reducer | None:
        """The same in every layer."""
        return EViTReducer(self) if self.prune_ratio else None


@dataclass(frozen=True)
class ClsPruner:
    """The pruning of one layer."""

    config: ClsPruningConfig
    needs: ClassVar[frozenset[str]] = frozenset({CLS_ROW})

    def decide(self, cues: Cues) -> tuple[Decision, Decision]:
        """Prune image tokens; text stays."""
        mask = cues.image.mask
        kept = keep(_saliency(cues), mask, self.config.kept)
        return Decision.identity(cues.text.mask), only(kept, mask.shape[1])


@dataclass(frozen=True)
class EViTReducer:
    """The pruning and fusing of one layer."""

    config: EViTConfig
    needs: ClassVar[frozenset[str]] = frozenset({CLS_ROW})

    def decide(self, cues: Cues) -> tuple[Decision, Decision]:
        """Fuse what is not attentive into the slot of its most attentive token; text stays."""
        mask, saliency = cues.image.mask, _saliency(cues)
        text = Decision.identity(cues.text.mask).with_policy(proportional=False)
        lengths, slots = mask.sum(dim=1), mask.shape[1]
        count, most = tabulate(self.config.fused, lengths, slots)
        if most == 0:
            return text, only(everything(mask), slots).with_policy(proportional=False)
        stays, _ = tabulate(self.config.kept, lengths, slots)
        loses = mask & ~prune(saliency, mask, stays)
        order = saliency.masked_fill(~loses, -torch.inf).argsort(dim=1, descending=True, stable=True)
        happens = torch.arange(most, device=mask.device) < count[:, None]
        pairs = order[:, 1 : most + 1], order[:, :1].expand(-1, most), happens
        decision = join_pairs(everything(mask), pairs, self.config.left, lengths, slots)
        weight = saliency.clamp(min=torch.finfo(saliency.dtype).tiny)
        return text, decision.with_policy(weight=weight, proportional=False)


def _saliency(cues: Cues) -> Tensor:
    """``(B, V)``: attention of [CLS], averaged over heads."""
    assert cues.cls_row is not None  # for the type checker: it is in `needs`
    return cues.cls_row.mean(dim=1)
