"""What flows through a reduced model: Tokens (text and image), Decision (one reduction).

Letters: ``B`` batch, ``T`` text slots, ``V`` image slots, ``N`` slots of both, ``N0`` tokens that entered the model,
``K`` slots after a decision, ``D`` width, ``H`` heads, ``Dh`` head width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from pumer import kernels
from pumer.functional import compact, gather_tokens
from pumer.kernels import GONE

__all__ = ["GONE", "Decision", "Segments", "Tokens", "attention_bias"]


def _once(compute: Callable[[Any], Tensor]) -> Any:
    """A property of a frozen object that is computed once; in a graph each time, which knows what it has already."""

    def read(self: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return compute(self)
        kept: dict[str, Tensor] = self.__dict__
        name = f"_{compute.__name__}"
        if name not in kept:
            kept[name] = compute(self)
        return kept[name]

    return property(read, doc=compute.__doc__)


class Counted(Protocol):
    """What a rule leaves of each length; see `pumer.reducers.tables.Tables`."""

    @property
    def left(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens left of each length of the text, and of the image."""

    @property
    def merged(self) -> int:
        """The most tokens that are merged away."""


@dataclass(frozen=True)
class Segments:
    """Which token of a stream is what, where text and image interleave, as in the prompt of a decoder.

    Attributes:
        segment: ``(B, N)`` integers: 0 for text, above 0 for the image.
        protected: ``(B, N)`` bool, tokens that are neither pruned nor merged.
        index: ``(B, T + V)`` int64, where the text tokens stand, in order, and then those of the image.
        mask: ``(B, T + V)`` bool, which of these are real.
        slots: ``T`` and ``V``, the most text and image tokens that a sample has (static).
        guarded: The most protected ones among either (static).
        free_first: Whether free slots come before the tokens, so that the last slot stays the last token.
        lengths: Real text and image tokens of each sample, where they are known without asking the device; buffers
            are then no longer than they must be.
    """

    segment: Tensor
    protected: Tensor
    index: Tensor
    mask: Tensor
    slots: tuple[int, int]
    guarded: tuple[int, int]
    free_first: bool = False
    lengths: tuple[tuple[int, int], ...] | None = None

    @classmethod
    def of(
        cls,
        segment: Tensor,
        protected: Tensor,
        mask: Tensor,
        slots: tuple[int, int],
        guarded: tuple[int, int],
        free_first: bool = False,
        lengths: tuple[tuple[int, int], ...] | None = None,
    ) -> "Segments":
        """The segments of a stream whose real tokens are those of ``mask (B, N)``, without gaps between them."""
        found = [compact(mask & block, most) for block, most in zip((segment <= 0, segment > 0), slots, strict=True)]
        index, real = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        return cls(segment, protected & mask, index, real, slots, guarded, free_first, lengths)

    @property
    def guard(self) -> Tensor:
        """``(B, T + V)`` bool, which of the tokens at ``index`` are protected."""
        return self.protected.gather(1, self.index) & self.mask

    def reduced(self, decision: "Decision") -> "Segments":
        """Those of the tokens that are left."""
        segment, protected = decision.select(self.segment), decision.select(self.protected)
        rest = self.guarded, self.free_first, decision.known
        return Segments.of(segment, protected, decision.mask, decision.slots, *rest)

    def place(self, decision: "Decision", found: "Counted", counted: bool = True) -> "Decision":
        """A decision about the tokens at ``index`` as one about the stream, which keeps its order.

        Args:
            decision: By the ranks of text and image.
            found: How many are left of each length, and the most that are merged away.
            counted: Whether the former are each sample's counts, and no bounds.
        """
        N, bound = self.segment.shape[1], sum(decision.slots)
        at = torch.where(self.mask, self.index, N)
        code = at.new_full((at.shape[0], N + 1), GONE).scatter_(1, at, decision.moves)[:, :N]
        there, slots, known = code < GONE, min(N, bound), None
        if counted and self.lengths is not None and self.guarded == (0, 0):
            known = tuple((found.left[0][text], found.left[1][image]) for text, image in self.lengths)
            slots = max(map(sum, known))
        stands = there & (code % 2 == 0)
        slot = stands.cumsum(dim=1) - 1
        if self.free_first:
            slot = slot + slots - stands.sum(dim=1, keepdim=True)
        home = slot.new_zeros(slot.shape[0], bound + 1).scatter_(1, torch.where(stands, code >> 1, bound), slot)
        code = torch.where(there, 2 * home.gather(1, (code >> 1).clamp(max=bound)) + code % 2, GONE)
        return replace(decision, code=code, buffer=slots, stays=(False, False), known=known, merged=found.merged)


@dataclass(frozen=True)
class Decision:
    """What one reduction does to text and image; decided once, applied to every per-token tensor.

    Unless they interleave, the text comes first: its tokens are input slots ``0 .. T - 1`` and output slots
    ``0 .. Kt - 1``, those of the image come after. Either may be empty.

    Attributes:
        code: ``(B, N)`` integers, where each token goes: twice its output slot, and one more if it is merged away into
            the token that stands there; `GONE` if it is pruned or padding. None: every token stays in its slot.
        lengths: ``(B, 2)`` int64, real text and image tokens afterwards.
        slots: ``Kt`` and ``Kv``, output slots of text and image. A method that knows no modality leaves no text slots:
            afterwards all tokens count as image.
        weight: ``(B, N)`` above zero, what the mean of merged tokens is weighted by; None for their sizes.
        proportional: Whether later attention counts a merged token as often as it has parts (``log(size)``).
        bias: ``(B, 1, 1, K)`` attention bias of the output tokens, or None for the one that follows from their sizes.
        stays: Whether each token of the text, and of the image, stays in its slot, whatever the lengths.
        buffer: ``K`` where text and image interleave; None for ``Kt + Kv``.
        known: ``lengths`` where they are known without asking the device, as those of `Segments` are.
        merged: The most tokens that are merged away in a sample (static), or None if nobody knows.
    """

    code: Tensor | None
    lengths: Tensor
    slots: tuple[int, int]
    weight: Tensor | None = None
    proportional: bool = True
    bias: Tensor | None = None
    stays: tuple[bool, bool] = (False, False)
    buffer: int | None = None
    known: tuple[tuple[int, int], ...] | None = None
    merged: int | None = None

    def after_text(self, mask: Tensor) -> "Decision":
        """This one, about an image, as one about text that stays as it is, and the image after it.

        Args:
            mask: ``(B, T)`` bool, the real text tokens, compact.
        """
        T = mask.shape[1]
        text = torch.where(mask, 2 * torch.arange(T, device=mask.device), GONE)
        image = torch.where(self.moves < GONE, self.moves + 2 * T, GONE)
        lengths = torch.stack([mask.sum(dim=1), self.lengths[:, 1]], dim=1)
        code, slots = torch.cat([text, image], dim=1), (T, self.slots[1])
        return replace(self, code=code, lengths=lengths, slots=slots, weight=None, bias=None)

    @classmethod
    def of_slices(cls, slices: Sequence["Decision"]) -> "Decision":
        """One decision about a batch from those about its slices, made by the same reducer."""
        whole: Decision = _concatenated(slices)
        return whole

    @property
    def tokens(self) -> int:
        """``N``, input slots."""
        return sum(self.slots) if self.code is None else self.code.shape[1]

    @property
    def outputs(self) -> int:
        """``K``, output slots."""
        return sum(self.slots) if self.buffer is None else self.buffer

    @_once
    def moves(self) -> Tensor:
        """``(B, N)`` int64: ``code``, written out where every token stays."""
        if self.code is not None:
            return self.code.long()
        slots = 2 * torch.arange(sum(self.slots), device=self.lengths.device)
        return torch.where(self.mask, slots, GONE)

    @property
    def destination(self) -> Tensor:
        """``(B, N)`` int64, output slot of each input slot, -1 if pruned or padding."""
        moves = self.moves
        return torch.where(moves < GONE, moves >> 1, -1)

    @_once
    def mask(self) -> Tensor:
        """``(B, K)`` bool, False for free output slots."""
        if self.code is not None:
            return self._standing(torch.ones_like(self.code, dtype=torch.bool))
        ranks = [torch.arange(slots, device=self.lengths.device) for slots in self.slots]
        return torch.cat([rank < self.lengths[:, i, None] for i, rank in enumerate(ranks)], dim=1)

    @_once
    def index(self) -> Tensor:
        """``(B, K)`` int64, the input slot that stands at each output slot (for a merged token: its receiver)."""
        return self._standing(torch.arange(self.tokens, device=self.lengths.device).expand(len(self.lengths), -1))

    def _standing(self, x: Tensor) -> Tensor:
        """From ``(B, N)`` to ``(B, K)``: of the token that stands at each output slot; 0 for free ones."""
        code, slots = self.moves, self.outputs
        at = torch.where((code < GONE) & (code % 2 == 0), code >> 1, slots)
        return x.new_zeros(code.shape[0], slots + 1).scatter(1, at, x)[:, :slots]

    def select(self, x: Tensor) -> Tensor:
        """What is never averaged, such as positions: of the token that stands at each output slot.

        Args:
            x: ``(B, N)`` or ``(B, N, D)``.

        Returns:
            ``(B, K)`` or ``(B, K, D)``; free slots have what input slot 0 has.
        """
        return gather_tokens(x, self.index)

    def to(self, device: torch.device) -> "Decision":
        """The same decision on a device."""
        if self.lengths.device == device:
            return self
        moved: Decision = _moved(self, device)
        return moved

    def carry_out(self, tokens: "Tokens") -> "Tokens":
        """The tokens after this decision; what `Tokens.reduce` calls, and what a decision of another kind replaces."""
        return tokens.reduced(self)

    def shares(self, weight: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What part of its output slot each token is, and how large the slots are.

        Args:
            weight: ``(B, N)``, weight of each token in the average (its size, or ones).
            size: ``(B, N)`` sizes, where the weights are others.

        Returns:
            ``(B, K, N)``, whose rows sum to one, those of free slots to zero: by it, merged tokens are averaged, and
            others copied bit for bit; and the sizes summed, ``(B, K)``.
        """
        slots = self.outputs
        slot = (self.moves >> 1).clamp_(max=slots)[:, None]  # what is gone has a row of its own, which is cut off

        def spread(x: Tensor) -> Tensor:
            rows = x.new_zeros(x.shape[0], slots + 1, x.shape[1])
            return rows.scatter_(1, slot, x[:, None])[:, :slots]

        members = spread(weight)
        whole = members.sum(dim=-1)
        share = members / whole.clamp(min=torch.finfo(whole.dtype).tiny)[:, :, None]
        return share, whole if size is None else spread(size).sum(dim=-1)

    def total(self, x: Tensor) -> Tensor:
        """``(B, N)`` to ``(B, K)``: sums over what is merged (sizes); free slots are zero."""
        return self.shares(x)[1]

    def trace(self, owner: Tensor) -> Tensor:
        """Carry a source map through: ``owner (B, N0)`` of input slots (-1: gone) to one of output slots."""
        moved = self.destination.gather(1, owner.clamp(min=0))
        return torch.where(owner < 0, -1, moved)


@dataclass(frozen=True)
class Tokens:
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
        whole: Tokens = _concatenated(slices)
        return replace(whole, origin=lambda: torch.cat([origin() for origin in origins]))

    def to(self, device: torch.device) -> "Tokens":
        """The same tokens on a device, where the layers of a model are on several."""
        if self.size.device == device:
            return self
        origin = self.origin
        moved: Tokens = _moved(self, device)
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


def _concatenated(parts: Sequence[Any]) -> Any:
    """The rows of all parts, which are alike: of tensors, and of those inside tuples and the classes above."""
    first: Any = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, tuple):
        return tuple(_concatenated(each) for each in zip(*parts, strict=True))
    if isinstance(first, Decision | Segments | Tokens):
        whole: Any = {x.name: _concatenated([getattr(part, x.name) for part in parts]) for x in fields(first)}
        return replace(first, **whole)
    return first


def _moved(part: Any, device: torch.device) -> Any:
    """A tensor, or those inside tuples and the classes above, on a device."""
    if isinstance(part, Tensor):
        return part.to(device)
    if isinstance(part, tuple):
        return tuple(_moved(each, device) for each in part)
    if isinstance(part, Decision | Segments | Tokens):
        moved: Any = {x.name: _moved(getattr(part, x.name), device) for x in fields(part)}
        return replace(part, **moved)
    return part


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
