"""PuMer exactly as its released code computes it, so that the published checkpoints can be used.

The rules are those of the released models, oddities included: counts and scores see padding, kept image tokens stand
in order of their score, masks of merged words become fractions, the softmax is smoothed. For anything new use
`PuMerConfig`.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from pumer.functional import ordered, propose, unit
from pumer.reducers.base import (
    KEYS,
    TEXT_ROWS,
    Attention,
    Layer,
    Place,
    Ratio,
    Reducer,
    ReductionConfig,
    check_distinct,
)
from pumer.reducers.cues import Cues
from pumer.reducers.tables import integers, ranks
from pumer.tokens import GONE, Decision
from pumer.utils.config import config
from pumer.utils.errors import InputError

SMOOTHING = 1e-6


def smoothed_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Attention with the smoothed softmax, which has no fused kernel; see `functional.attention`."""
    return drop(smoothed_probabilities(query, key, bias), dropout, training=dropout > 0) @ value


def smoothed_probabilities(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
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
        itself = torch.eye(rows, columns, dtype=weight.dtype, device=weight.device)
        weight = weight * torch.maximum(bias.exp().to(weight.dtype), itself)
    smoothed: Tensor = (weight + SMOOTHING / columns) / (weight.sum(dim=-1, keepdim=True) + SMOOTHING)
    return smoothed


@config
class ReleasedPuMerConfig(ReductionConfig):
    """PuMer as its released code does it: the same ratios in all reducing layers.

    Attributes:
        layers: 0-based reducing layers (``reduce_layers`` of a released ``config.json``; may be empty).
        prune_ratio: Fraction of the image tokens to prune, in [0, 1); with 0 nothing is reduced at all.
        merge_ratio: Fraction of the image tokens to merge away, in [0, 1).
        text_merge_ratio: Fraction of the text tokens to merge away, in [0, 1).
        similarity: Whether tokens are compared by the mean of their keys over heads, or by the first head's key.

    Raises:
        InputError: For a value out of range.
    """

    layers: tuple[Layer, ...] = ()
    prune_ratio: Ratio = 0.0
    merge_ratio: Ratio = 0.0
    text_merge_ratio: Ratio = 0.0
    similarity: Literal["mean_head", "first_head"] = "mean_head"

    method: ClassVar[str] = "pumer-released"
    stacks: ClassVar[tuple[str, ...]] = ("fusion", "vision")
    amounts: ClassVar[tuple[str, ...]] = ("prune_ratio", "merge_ratio", "text_merge_ratio")
    needs: ClassVar[frozenset[str]] = frozenset({KEYS, TEXT_ROWS})
    attention: ClassVar[Attention] = Attention(smoothed_attention, smoothed_probabilities)

    def __post_init__(self) -> None:
        """Refuse a layer that is named twice."""
        check_distinct([("fusion", layer) for layer in self.layers])

    def reducers(self) -> dict[Place, Reducer]:
        """The config itself, which has no other state, in every reducing layer."""
        return {("fusion", layer): self for layer in self.layers}

    def decide(self, cues: Cues) -> Decision:
        """Prune by score, then merge, as many in every sample: [CLS] and padding are counted.

        Afterwards the image mask is all ones, the text mask an average.
        """
        if cues.tokens.segments is not None:
            raise InputError("method 'pumer-released' is for ViLT and METER alone; give method 'pumer'")
        T, V = map(int, cues.tokens.slots)  # of a traced model, they are tensors
        device, B = cues.tokens.size.device, cues.tokens.size.shape[0]
        pruned = round(self.prune_ratio * V)
        if pruned == 0:
            bias = torch.cat([_soft_mask(cues, modality) for modality in (0, 1)], dim=1).log()[:, None, None]
            return Decision(None, integers(device, T, V).expand(B, 2), (T, V), bias=bias)
        kept = max(V - pruned, 1)
        merges = min(round(self.merge_ratio * V), (kept - 1) // 2)
        if merges == 0 and not cues.one_stream:  # released METER loses what it pruned when it merges nothing
            kept, order = V, ranks(V, device).expand(B, V)
        else:
            order = ordered(cues.text_rows().sum(dim=(1, 2)), descending=True)[:, :kept]
        text_merges = min(round(self.text_merge_ratio * T), (T - 1) // 2)
        left, image_left = T - text_merges, kept - merges
        text, image = self._codes(cues, order, text_merges, merges)
        if kept < V:
            image = torch.full((B, V), GONE, device=device).scatter_(1, order, image)
        soft = _soft_mask(cues, 0)
        if text_merges:
            members = ((text >> 1)[:, None] == ranks(left, device)[:, None]).to(soft.dtype)
            soft = torch.bmm(members, soft[:, :, None])[:, :, 0] / members.sum(dim=-1)
        ones = torch.ones_like(cues.tokens.size)
        seen = ones[:, :image_left] if kept < V or merges else _soft_mask(cues, 1)
        return Decision(
            torch.cat([text, image], dim=1),
            integers(device, left, image_left).expand(B, 2),
            (left, image_left),
            weight=ones,  # the plain mean of what is merged
            bias=torch.cat([soft, seen], dim=1).log()[:, None, None],
        )

    def _codes(self, cues: Cues, order: Tensor, text_merges: int, merges: int) -> tuple[Tensor, Tensor]:
        """Codes of the text ``(B, T)`` and the image tokens in ``order (B, K)``: even ranks come before odd ones."""
        (B, kept), (T, _), device = order.shape, cues.tokens.slots, order.device
        before, longest = T - text_merges, max(T, kept)
        W = longest + longest % 2
        count = integers(device, T, text_merges, kept, merges).view(2, 2, 1).expand(B, 2, 2, 1)
        first = integers(device, W, *range(1, W))  # [CLS] counts as beyond all: it is never merged away
        hidden, spared = first >= count[:, :, 0], ranks(W // 2, device) >= count[:, :, 1]
        parts = [ranks(T, device), ranks(W - T, device), order + T, ranks(W - kept, device)]
        at = torch.cat([part.expand(B, part.shape[-1]) for part in parts], dim=1)[:, :, None]
        features = self._features(cues)
        features = features.gather(1, at.expand(-1, -1, features.shape[2])).view(2 * B, W, -1)
        stays, receiver = propose(features, hidden.view(2 * B, W), spared.view(2 * B, W // 2))
        stays, receiver = stays.view(B, 2, -1), receiver.view(B, 2, -1)
        first_odd = 2 * ((T + 1) // 2 - text_merges), 2 * (before + (kept + 1) // 2 - merges)
        even = torch.add(integers(device, -2, 2 * before - 2)[:, None], stays.cumsum(dim=2), alpha=2)
        into = torch.add(integers(device, *(code + 1 for code in first_odd))[:, None], receiver, alpha=2)
        odd = torch.add(integers(device, *first_odd)[:, None], ranks(W // 2, device), alpha=2)
        codes = torch.stack([torch.where(stays, even, into), odd.expand(even.shape)], dim=3).flatten(2)
        text, image = codes[:, 0, :T], codes[:, 1, :kept]
        if text_merges == 0:
            text = 2 * ranks(T, device).expand(B, T)
        if merges == 0:
            image = 2 * (ranks(kept, device) + before).expand(B, kept)
        return text, image

    def _features(self, cues: Cues) -> Tensor:
        """``(B, N, Dh)``, of length one."""
        assert cues.key is not None  # for the type checker: it is in `needs`
        key = cues.key if cues.one_stream else torch.cat([cues.text_key, cues.image_key], dim=2)
        return unit(key.mean(dim=1) if self.similarity == "mean_head" else key[:, 0])


def _soft_mask(cues: Cues, modality: int) -> Tensor:
    """``(B, T)`` of the text (0) or ``(B, V)`` of the image (1): what the released softmax multiplies with."""
    tokens = cues.tokens
    bias = tokens.biases[0 if cues.one_stream else modality]
    if bias is None:
        return torch.split(tokens.mask.float(), list(tokens.slots), dim=1)[modality]
    soft = bias[:, 0, 0].exp()
    return torch.split(soft, list(tokens.slots), dim=1)[modality] if cues.one_stream else soft
