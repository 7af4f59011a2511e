"""PuMer exactly as its released code computes it, so that the published checkpoints can be used.

The rules are those of the released models, oddities included: counts and scores see padding, kept image tokens stand
in order of their score, masks of merged words become fractions, the softmax is smoothed. For anything new use
`PuMerConfig`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from pumer.errors import InputError
from pumer.functional import gather_tokens, match
from pumer.reducers.base import (
    KEYS,
    TEXT_ROWS,
    Place,
    Reducer,
    ReductionConfig,
    check_distinct,
    check_layers,
    check_ratios,
)
from pumer.tokens import Block, Cues, Decision

SMOOTHING = 1e-6


@dataclass(frozen=True, kw_only=True)
class ReleasedPuMerConfig(ReductionConfig):
    """The released reduction: the same ratios in all reducing layers.

    Attributes:
        layers: 0-based reducing layers (``reduce_layers`` of a released ``config.json``; may be empty).
        prune_ratio: Fraction of the image tokens to prune, in [0, 1); with 0 nothing is reduced at all.
        merge_ratio: Fraction of the image tokens to merge away, in [0, 1).
        text_merge_ratio: Fraction of the text tokens to merge away, in [0, 1).
        similarity: Whether tokens are compared by the mean of their keys over heads, or by the first head's key.

    Raises:
        InputError: For a value out of range.
    """

    layers: tuple[int, ...] = ()
    prune_ratio: float = 0.0
    merge_ratio: float = 0.0
    text_merge_ratio: float = 0.0
    similarity: Literal["mean_head", "first_head"] = "mean_head"

    method: ClassVar[str] = "pumer-released"
    amounts: ClassVar[tuple[str, ...]] = ("prune_ratio", "merge_ratio", "text_merge_ratio")

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_ratios(self, "the released reduction")
        check_layers(self.layers, "the released reduction")
        object.__setattr__(self, "layers", tuple(self.layers))
        check_distinct([("fusion", layer) for layer in self.layers])
        if self.similarity not in ("mean_head", "first_head"):
            raise InputError(f"similarity {self.similarity!r} is unknown; give 'mean_head' or 'first_head'")

    def reducers(self) -> dict[Place, Reducer]:
        """The same reducer in every reducing layer."""
        return {("fusion", layer): ReleasedPuMerReducer(self) for layer in self.layers}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
        """Attention with the smoothed softmax, which has no fused kernel."""
        return drop(self.probabilities(query, key, bias), dropout, training=dropout > 0) @ value

    def probabilities(self, query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
        """Smoothed softmax ``(exp * m + eps / N) / (sum + eps)``, in which row i always sees column i.

        Args:
            query: ``(B, H, Q, Dh)``, the first Q rows.
            key: ``(B, H, N, Dh)``.
            bias: ``(B, 1, 1, N)``, log of the soft mask m.

        Returns:
            ``(B, H, Q, N)``.
        """
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        rows, columns = logits.shape[-2:]
        weight = (logits - logits.amax(dim=-1, keepdim=True)).exp()
        if bias is not None:
            soft = bias.exp().to(weight.dtype)
            weight = weight * (soft + (1 - soft) * torch.eye(rows, columns, dtype=weight.dtype, device=weight.device))
        smoothed: Tensor = (weight + SMOOTHING / columns) / (weight.sum(dim=-1, keepdim=True) + SMOOTHING)
        return smoothed


@dataclass(frozen=True)
class ReleasedPuMerReducer:
    """The released token reducer; counts include [CLS] and padding, so they are the same for all samples."""

    config: ReleasedPuMerConfig

    @property
    def needs(self) -> frozenset[str]:
        """Keys and text rows, always."""
        return frozenset({KEYS, TEXT_ROWS})

    def decide(self, cues: Cues) -> tuple[Decision, Decision]:
        """Prune by score, then merge; the image mask is all ones afterwards, the text mask an average."""
        tokens = cues.image.mask.shape[1]
        pruned = round(self.config.prune_ratio * tokens)
        if pruned == 0:
            return _unchanged(cues.text), _unchanged(cues.image)
        assert cues.text_rows is not None  # for the type checker: it is in `needs`
        score = cues.text_rows.mean(dim=1).sum(dim=1)
        kept = max(tokens - pruned, 1)
        order = score.argsort(dim=1, descending=True, stable=True)[:, :kept]
        merges = min(round(self.config.merge_ratio * tokens), (kept - 1) // 2)
        if merges == 0 and not cues.one_stream:  # released METER loses what it pruned when it merges nothing
            return self._merge_text(cues.text), _unchanged(cues.image)
        image = self._merge(cues.image, order, merges)
        image = image.with_policy(weighted=False, bias=torch.zeros_like(image.mask, dtype=score.dtype)[:, None, None])
        return self._merge_text(cues.text), image

    def _merge_text(self, block: Block) -> Decision:
        tokens = block.mask.shape[1]
        merges = min(round(self.config.text_merge_ratio * tokens), (tokens - 1) // 2)
        order = torch.arange(tokens, device=block.mask.device).expand(block.mask.shape)
        decision = self._merge(block, order, merges)
        soft = _soft_mask(block)
        averaged = decision.apply(soft[:, :, None], torch.ones_like(soft))[:, :, 0]
        return decision.with_policy(weighted=False, bias=averaged.log()[:, None, None])

    def _merge(self, block: Block, order: Tensor, merges: int) -> Decision:
        """Merge ``merges`` pairs among the tokens in ``order (B, K)``; even ranks that survive come first."""
        tokens = block.mask.shape[1]
        everywhere = torch.ones_like(order, dtype=torch.bool)
        if merges == 0 or block.keys is None:
            none = order[:, :0]
            return Decision.build(order, everywhere, none, none, everywhere[:, :0], tokens)
        keys = block.keys.mean(dim=1) if self.config.similarity == "mean_head" else block.keys[:, 0]
        count = torch.full_like(order[:, 0], merges)
        source, target, valid = match(gather_tokens(keys, order), everywhere, count, merges)
        ranks = torch.arange(order.shape[1], device=order.device)
        merged = (source[:, None, :] == ranks[:, None]).any(dim=-1)
        # surviving even ranks, then odd ranks, each in rising order: sort by (merged, odd, rank)
        place = merged.to(torch.int64) * 2 + (ranks % 2)
        stays = place.argsort(dim=1, stable=True)[:, : order.shape[1] - merges]
        return Decision.build(
            order.gather(1, stays),
            everywhere[:, : stays.shape[1]],
            order.gather(1, source),
            order.gather(1, target),
            valid,
            tokens,
        )


def _soft_mask(block: Block) -> Tensor:
    """``(B, n)``: the mask the released softmax multiplies with, fractions included."""
    if block.bias is None:
        return block.mask.to(torch.float32)
    return block.bias.exp()[:, 0, 0]


def _unchanged(block: Block) -> Decision:
    everywhere = torch.ones_like(block.mask)
    return Decision.identity(everywhere).with_policy(weighted=False, bias=_soft_mask(block).log()[:, None, None])
