"""Tokens: text and image on their way through a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pumer import kernels
from pumer.functional import compact, gather_tokens
from pumer.kernels import GONE
from pumer.tokens.decision import Batch, Decision, each_tensor
from pumer.tokens.segments import Segments


@dataclass(frozen=True)
class Tokens(Batch):
    """Text and image on their way through a model; either may be empty.

    Without ``segments`` each is compact, the text first, and the first token of either is [CLS], which is protected.

    Attributes:
        streams: One tensor of states ``(B, N, D)`` where text and image are one sequence; else those of the text
            ``(B, T, D)`` and of the image ``(B, V, D)``.
        size: ``(B, N)`` float32, how many input tokens each one holds; 0 for free slots.
        biases: For each stream ``(B, 1, 1, its tokens)`` added to attention logits, or None if nothing is hidden or
            weighted.
        text_length: ``T`` (static).
        origin: Gives ``(B, N0)`` int64, the slot that held each input token at the start, -1 for padding; asked only if
            somebody wants to know where tokens went.
        history: The decisions since then, each with the number of text slots before those it is about.
        counts: ``(B, 2)`` int64, real text and image tokens, or None if nobody has counted them.
        segments: Which token is what in a stream where text and image interleave.
    """

    streams: tuple[Tensor, ...]
    size: Tensor
    biases: tuple[Tensor | None, ...]
    text_length: int
    origin: Callable[[], Tensor]
    history: tuple[tuple[Decision, int], ...] = field(default=(), repr=False)
    counts: Tensor | None = None
    segments: Segments | None = None

    @property
    def states(self) -> Tensor:
        """``(B, N, D)``, of text and image."""
        return self.streams[0] if len(self.streams) == 1 else torch.cat(self.streams, dim=1)

    @property
    def mask(self) -> Tensor:
        """``(B, N)`` bool, real tokens."""
        return self.size > 0

    @property
    def slots(self) -> tuple[int, int]:
        """``T`` and ``V``."""
        if self.segments is not None:
            return self.segments.slots
        return self.text_length, self.size.shape[1] - self.text_length

    @property
    def blocks(self) -> Tensor:
        """``(B, T + V)`` bool, real text tokens and then real image tokens, each compact."""
        return self.mask if self.segments is None else self.segments.mask

    @property
    def lengths(self) -> Tensor:
        """``(B, 2)`` int64, real text and image tokens."""
        if self.counts is not None:
            return self.counts
        return torch.stack([part.sum(dim=1) for part in self.blocks.split(list(self.slots), dim=1)], dim=1)

    @property
    def bias(self) -> Tensor | None:
        """``(B, 1, 1, N)`` of text and image."""
        if len(self.streams) == 1:
            return self.biases[0]
        masks = torch.split(self.mask, list(self.slots), dim=1)
        parts = [attention_bias(mask) if bias is None else bias for mask, bias in zip(masks, self.biases, strict=True)]
        return torch.cat(parts, dim=-1)

    @property
    def source(self) -> Tensor:
        """``(B, N0)`` int64, slot that holds each input token now; -1 if pruned or padding."""
        return self._carried(self.origin())

    def _carried(self, owner: Tensor) -> Tensor:
        for decision, before in self.history:
            owner = _traced(owner, decision, before)
        return owner

    def expand(self, x: Tensor, inputs: int | None = None) -> Tensor:
        """Give an output for these tokens the length of the input back, so that who reads it by position still can.

        Args:
            x: ``(B, N, D)``.
            inputs: Only the first input tokens, this many; None: all.

        Returns:
            ``(B, N0, D)``: for each input token that of the token that holds it, 0 for what is pruned or padding.
        """
        owner = self._carried(self.origin()[:, :inputs])
        return gather_tokens(x, owner.clamp(min=0)) * (owner >= 0)[:, :, None].to(x.dtype)

    @classmethod
    def of_slices(cls, slices: Sequence["Tokens"]) -> "Tokens":
        """The tokens of a batch from those of its slices, which went through the same layers."""
        first = slices[0]
        if len(slices) == 1:
            return first
        origins = [part.origin for part in slices]
        whole: Tokens = each_tensor(slices, torch.cat)
        return replace(whole, origin=lambda: torch.cat([origin() for origin in origins]))

    def to(self, device: torch.device) -> "Tokens":
        """The same tokens on a device, where the layers of a model are on several."""
        if self.size.device == device:
            return self
        origin = self.origin
        moved: Tokens = each_tensor([self], lambda tensors: tensors[0].to(device))
        return replace(moved, origin=lambda: origin().to(device))

    def with_streams(self, *streams: Tensor) -> "Tokens":
        """The same tokens with new states."""
        return replace(self, streams=streams)

    def reduce(self, decision: Decision) -> "Tokens":
        """Apply a decision about text and image to everything: states, sizes, bias."""
        return decision.carry_out(self)

    def reduced(self, decision: Decision) -> "Tokens":
        """As `reduce`, by the code of a decision."""
        history = (*self.history, (decision, 0))
        if decision.code is None:  # nothing moves
            biases = self.biases if decision.bias is None else self._split(decision.bias, decision.slots[0])
            return replace(self, biases=biases, history=history)
        segments = self.segments
        if segments is not None and decision.merged is not None:
            streams, size, biases = self._reduce_interleaved(decision, decision.merged)
        elif segments is None and kernels.usable(self.streams[0]):
            streams, size, biases = self._reduce_fused(decision, decision.code)
        else:
            streams, size, biases = self._reduce_plain(decision)
        segments = None if segments is None else segments.reduced(decision)
        return Tokens(streams, size, biases, decision.slots[0], self.origin, history, decision.lengths, segments)

    def _reduce_plain(self, decision: Decision) -> tuple[tuple[Tensor, ...], Tensor, tuple[Tensor | None, ...]]:
        weights = (self.size,) if decision.weight is None else (decision.weight, self.size)
        share, size = decision.shares(*weights)
        share = share.to(self.streams[0].dtype)
        if len(self.streams) == 1:
            streams: tuple[Tensor, ...] = (torch.bmm(share, self.streams[0]),)
        else:
            T, kept = self.text_length, decision.slots[0]
            text, image = self.streams
            if not decision.stays[0]:
                text = torch.bmm(share[:, :kept, :T], text)
            if not decision.stays[1]:
                image = torch.bmm(share[:, kept:, T:], image)
            streams = text, image
        bias = decision.bias
        if bias is None:
            bias = size.log()[:, None, None] if decision.proportional else attention_bias(size > 0)
        return streams, size, self._split(bias.to(self._bias_dtype), decision.slots[0])

    def _reduce_interleaved(
        self, decision: Decision, most: int
    ) -> tuple[tuple[Tensor, ...], Tensor, tuple[Tensor | None, ...]]:
        """The same for a long prompt, of which few tokens merge: no matrix has a column for each token."""
        states, slots, moves = self.streams[0], decision.outputs, decision.moves
        slot, weight = (moves >> 1).clamp(max=slots), self.size if decision.weight is None else decision.weight
        blank = weight.new_zeros(weight.shape[0], slots + 1)
        whole = blank.scatter_add(1, slot, weight)
        share = weight / whole.gather(1, slot).clamp(min=torch.finfo(whole.dtype).tiny)
        part = torch.where(decision.mask, share.gather(1, decision.index), 0)
        stream = gather_tokens(states, decision.index) * part[:, :, None].to(states.dtype)
        if most:
            at, there = compact((moves < GONE) & (moves % 2 == 1), most)
            into = slot.gather(1, at)[:, None], (share.gather(1, at) * there)[:, None]
            parts = share.new_zeros(share.shape[0], slots + 1, at.shape[1]).scatter_(1, *into)[:, :slots]
            stream = stream + torch.bmm(parts.to(states.dtype), gather_tokens(states, at))
        size = blank.to(self.size.dtype).scatter_add(1, slot, self.size)[:, :slots]
        bias = decision.bias
        if bias is None:
            bias = size.log()[:, None, None] if decision.proportional else attention_bias(size > 0)
        return (stream,), size, (bias.to(self._bias_dtype),)

    def _reduce_fused(
        self, decision: Decision, code: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor, tuple[Tensor | None, ...]]:
        first, second = self.streams if len(self.streams) == 2 else (self.streams[0], None)
        (T, V), weight = decision.slots, None if decision.weight is None else decision.weight.float()
        text, image, size, _, bias, image_bias = kernels.apply(
            first, second, self.size, weight, code, decision.lengths, T, V, decision.proportional, self._bias_dtype
        )
        streams, biases = ((text,), (bias[..., : T + V],)) if second is None else (
            (text, image), (bias[..., :T], image_bias[..., :V])
        )  # fmt: skip
        return streams, size, biases if decision.bias is None else self._split(decision.bias, T)

    @property
    def _bias_dtype(self) -> torch.dtype:
        """Of the biases so far, which is that of the attention; float32 where there is none."""
        return next((bias.dtype for bias in self.biases if bias is not None), torch.float32)

    def _split(self, bias: Tensor, text_length: int) -> tuple[Tensor | None, ...]:
        """``(B, 1, 1, K)`` as a bias of each stream."""
        if len(self.streams) == 1:
            return (bias,)
        text, image = bias[..., :text_length], bias[..., text_length:]
        # A GPU's fused attention reads several numbers at once, and fails where the first one is not aligned for that.
        return text, image.clone() if image.is_cuda else image


def _traced(owner: Tensor, decision: Decision, before: int) -> Tensor:
    """Carry a source map through a decision that is about what comes after ``before`` slots."""
    if before == 0:
        return decision.trace(owner)
    moved = decision.trace(torch.where(owner < before, -1, owner - before))
    return torch.where(owner < before, owner, torch.where(moved < 0, -1, moved + before))


def attention_bias(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bias that hides free slots.

    Args:
        mask: ``(B, N)`` bool.
        dtype: Of the attention.

    Returns:
        ``(B, 1, 1, N)``: 0, and minus infinity where masked.
    """
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill_(~mask, -torch.inf)[:, None, None, :]
