"""PuMer exactly as its released code computes it, so that the published checkpoints can be used.

The rules are those of the released models, oddities included: counts and scores see padding, kept image tokens stand
in order of their score, masks of merged words become fractions, the softmax is smoothed. For anything new use
`PuMerConfig`.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import pad

from pumer.errors import InputError
from pumer.functional import gather_tokens, propose, unit
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
from pumer.tables import integers, ranks
from pumer.tokens import GONE, Cues, Decision

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

    def decide(self, cues: Cues) -> Decision:
        """Prune by score, then merge; the image mask is all ones afterwards, the text mask an average."""
        tokens = cues.tokens.slots[1]
        pruned = round(self.config.prune_ratio * tokens)
        text, image = _soft_masks(cues)
        if pruned == 0:
            return _as_it_is(cues, torch.cat([text, image], dim=1))
        score = cues.text_rows().mean(dim=1).sum(dim=1)
        kept = max(tokens - pruned, 1)
        order = score.argsort(dim=1, descending=True, stable=True)[:, :kept]
        merges = min(round(self.config.merge_ratio * tokens), (kept - 1) // 2)
        about_text, averaged = self._merge_text(cues, text)
        if merges == 0 and not cues.one_stream:  # released METER loses what it pruned when it merges nothing
            about_image, seen = _everywhere(image), image
        else:
            about_image = self._merge(cues.image_key, order, merges)
            seen = torch.ones_like(image[:, : about_image.slots[1]])
        joined = Decision.join(about_text, about_image)
        bias = torch.cat([averaged, seen], dim=1).log()[:, None, None]
        weight = torch.ones_like(torch.cat([text, image], dim=1))  # the plain mean of what is merged
        return replace(joined, bias=bias, weight=weight)

    def _merge_text(self, cues: Cues, soft: Tensor) -> tuple[Decision, Tensor]:
        """The decision about the text as one block, and its soft mask ``(B, Kt)`` afterwards."""
        tokens = soft.shape[1]
        merges = min(round(self.config.text_merge_ratio * tokens), (tokens - 1) // 2)
        if merges == 0 or cues.text_key is None:
            return _everywhere(soft), soft
        order = ranks(tokens, soft.device).expand(soft.shape)
        decision = self._merge(cues.text_key, order, merges)
        return decision, decision.apply(soft[:, :, None], torch.ones_like(soft))[:, :, 0]

    def _merge(self, key: Tensor, order: Tensor, merges: int) -> Decision:
        """Merge ``merges`` pairs among the tokens in ``order (B, K)``; even ranks that survive come first, then odd ones."""
        kept, rank = order.shape[1], ranks(order.shape[1], order.device)
        code = 2 * rank.expand(order.shape)
        if merges:
            keys = key.mean(dim=1) if self.config.similarity == "mean_head" else key[:, 0]
            features = pad(unit(gather_tokens(keys, order)), (0, 0, 0, kept % 2))
            half = ranks((kept + 1) // 2, order.device).expand(len(order), -1)
            outside = ranks(kept + kept % 2, order.device).expand(len(order), -1) >= kept
            stays, receiver = propose(features, outside, half >= merges)
            surviving = half.shape[1] - merges
            even = torch.where(stays, 2 * (stays.cumsum(dim=1) - 1), 2 * (surviving + receiver) + 1)
            odd = 2 * (surviving + half)
            code = torch.stack([even, odd], dim=2).flatten(1)[:, :kept]
        gone = torch.full((len(key), key.shape[2]), GONE, device=key.device)
        code = gone.scatter(1, order, code)
        return Decision.of_image(code, torch.full_like(code[:, 0], kept - merges), kept - merges)


def _soft_masks(cues: Cues) -> tuple[Tensor, Tensor]:
    """``(B, T)`` and ``(B, V)``: the masks that the released softmax multiplies with, fractions included."""
    mask = cues.tokens.mask.float() if cues.tokens.bias is None else cues.tokens.bias.exp()[:, 0, 0]
    text, image = mask.split(cues.tokens.slots, dim=1)
    return text, image


def _everywhere(mask: Tensor) -> Decision:
    """What changes nothing about a block and takes padding for tokens."""
    return Decision.identity(torch.ones_like(mask, dtype=torch.bool))


def _as_it_is(cues: Cues, mask: Tensor) -> Decision:
    lengths = torch.ones_like(cues.tokens.lengths) * integers(mask.device, *cues.tokens.slots)
    return Decision(None, lengths, cues.tokens.slots, bias=mask.log()[:, None, None])
