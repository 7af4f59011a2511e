"""What flows through a reduced model: Tokens (text and image), Decision (one reduction).

Letters: ``B`` batch, ``T`` text slots, ``V`` image slots, ``N = T + V``, ``N0`` tokens that entered the model, ``K``
slots after a decision, ``D`` width, ``H`` heads, ``Dh`` head width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pumer import kernels
from pumer.kernels import GONE

__all__ = ["GONE", "Decision", "Tokens", "attention_bias"]


@dataclass(frozen=True)
class Decision:
    """What one reduction does to text and image; decided once, applied to every per-token tensor.

    Text is counted first: its tokens are input slots ``0 .. T - 1`` and output slots ``0 .. Kt - 1``, those of the
    image come after. Either may be empty.

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
    """

    code: Tensor | None
    lengths: Tensor
    slots: tuple[int, int]
    weight: Tensor | None = None
    proportional: bool = True
    bias: Tensor | None = None
    stays: tuple[bool, bool] = (False, False)

    @classmethod
    def of_image(cls, code: Tensor, length: Tensor, slots: int) -> "Decision":
        """A decision about the image alone.

        Args:
            code: ``(B, V)``, with output slots from 0 on.
            length: ``(B,)`` real tokens afterwards.
            slots: ``Kv``.
        """
        return cls(code, torch.stack([torch.zeros_like(length), length], dim=1), (0, slots))

    @classmethod
    def identity(cls, mask: Tensor) -> "Decision":
        """The decision about an image that changes nothing. Args: mask: ``(B, V)`` bool."""
        slots = 2 * torch.arange(mask.shape[1], device=mask.device)
        return cls.of_image(torch.where(mask, slots, GONE), mask.sum(dim=1), mask.shape[1])

    @classmethod
    def join(cls, text: "Decision", image: "Decision") -> "Decision":
        """One decision about text and image from one about each, both made as if about an image.

        Raises:
            ValueError: When one counts a merged token by its size and the other does not.
        """
        if text.proportional != image.proportional:
            raise ValueError("the decisions about text and image must agree on `proportional`")
        kept = text.slots[1]
        moved = torch.where(image.moves < GONE, image.moves + 2 * kept, GONE)
        bias = weight = None
        if text.bias is not None and image.bias is not None:
            bias = torch.cat([text.bias, image.bias], dim=-1)
        if text.weight is not None and image.weight is not None:
            weight = torch.cat([text.weight, image.weight], dim=1)
        return cls(
            torch.cat([text.moves, moved], dim=1),
            torch.stack([text.lengths[:, 1], image.lengths[:, 1]], dim=1),
            (kept, image.slots[1]),
            weight,
            text.proportional,
            bias,
        )

    @classmethod
    def of_slices(cls, slices: Sequence["Decision"]) -> "Decision":
        """One decision about a batch from those about its slices, made by the same reducer."""
        first = slices[0]
        if len(slices) == 1:
            return first
        return replace(
            first,
            code=_rows([part.code for part in slices]),
            lengths=torch.cat([part.lengths for part in slices]),
            weight=_rows([part.weight for part in slices]),
            bias=_rows([part.bias for part in slices]),
        )

    @property
    def tokens(self) -> int:
        """``N``, input slots."""
        return sum(self.slots) if self.code is None else self.code.shape[1]

    @property
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

    @property
    def mask(self) -> Tensor:
        """``(B, K)`` bool, False for free output slots."""
        parts = [
            torch.arange(slots, device=self.lengths.device) < self.lengths[:, i, None]
            for i, slots in enumerate(self.slots)
        ]
        return torch.cat(parts, dim=1)

    @property
    def index(self) -> Tensor:
        """``(B, K)`` int64, the input slot that stands at each output slot (for a merged token: its receiver)."""
        code, slots = self.moves, sum(self.slots)
        stands = (code < GONE) & (code % 2 == 0)
        tokens = torch.arange(code.shape[1], device=code.device).expand_as(code)
        index = tokens.new_zeros(code.shape[0], slots + 1)
        return index.scatter(1, torch.where(stands, code >> 1, slots), tokens)[:, :slots]

    def carry_out(self, tokens: "Tokens") -> "Tokens":
        """The tokens after this decision; what `Tokens.reduce` calls, and what a decision of another kind replaces."""
        return tokens.reduced(self)

    def shares(self, weight: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What part of its output slot each token is, and how large the slots are.

        Args:
            weight: ``(B, N)``, weight of each token in the average (its size, or ones).
            size: ``(B, N)`` sizes, where the weights are others.

        Returns:
            ``(B, K, N)``, whose rows sum to one, those of free slots to zero; and the sizes summed, ``(B, K)``.
        """
        slots = sum(self.slots)
        slot = (self.moves >> 1).clamp_(max=slots)[:, None]  # what is gone has a row of its own, which is cut off
        members = _spread(weight, slot, slots)
        whole = members.sum(dim=-1)
        share = members / whole.clamp(min=torch.finfo(whole.dtype).tiny)[:, :, None]
        return share, whole if size is None else _spread(size, slot, slots).sum(dim=-1)

    def total(self, x: Tensor) -> Tensor:
        """``(B, N)`` to ``(B, K)``: sums over what is merged (sizes); free slots are zero."""
        return self.shares(x)[1]

    def apply(self, x: Tensor, share: Tensor) -> Tensor:
        """Average each merged token; tokens that nothing is merged into are copied bit for bit.

        Args:
            x: ``(B, N, D)``, of one stream.
            share: ``(B, K, N)``, see `shares`.

        Returns:
            ``(B, K, D)``; free slots are zero.
        """
        return torch.bmm(share.to(x.dtype), x)

    def trace(self, owner: Tensor) -> Tensor:
        """Carry a source map through: ``owner (B, N0)`` of input slots (-1: gone) to one of output slots."""
        moved = self.destination.gather(1, owner.clamp(min=0))
        return torch.where(owner < 0, -1, moved)


def _spread(weight: Tensor, slot: Tensor, slots: int) -> Tensor:
    """Weights ``(B, N)`` in the rows of the slots ``(B, 1, N)`` they go to: ``(B, K, N)``, without slot K."""
    rows = weight.new_zeros(weight.shape[0], slots + 1, weight.shape[1])
    return rows.scatter_(1, slot, weight[:, None])[:, :slots]


@dataclass(frozen=True)
class Tokens:
    """Text and image on their way through a model, each compact; either may be empty.

    Attributes:
        streams: One tensor of states ``(B, N, D)`` where text and image are one sequence, the text first; else those of
            the text ``(B, T, D)`` and of the image ``(B, V, D)``.
        size: ``(B, N)`` float32, how many input tokens each one holds; 0 for free slots.
        biases: For each stream ``(B, 1, 1, its tokens)`` added to attention logits, or None if nothing is hidden or
            weighted.
        text_length: ``T``, slots of the text (static).
        origin: Gives ``(B, N0)`` int64, the slot that held each input token at the start, -1 for padding; asked only if
            somebody wants to know where tokens went.
        history: The decisions since then, each with the number of text slots before those it is about.
        counts: ``(B, 2)`` int64, real text and image tokens, or None if nobody has counted them.
    """

    streams: tuple[Tensor, ...]
    size: Tensor
    biases: tuple[Tensor | None, ...]
    text_length: int
    origin: Callable[[], Tensor]
    history: tuple[tuple[Decision, int], ...] = field(default=(), repr=False)
    counts: Tensor | None = None

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
        return self.text_length, self.size.shape[1] - self.text_length

    @property
    def lengths(self) -> Tensor:
        """``(B, 2)`` int64, real text and image tokens."""
        if self.counts is not None:
            return self.counts
        mask = self.mask
        return torch.stack([mask[:, : self.text_length].sum(dim=1), mask[:, self.text_length :].sum(dim=1)], dim=1)

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

    def text_source(self, text_length: int) -> Tensor:
        """``source`` of the first ``text_length`` input tokens, the text's: ``(B, text_length)``."""
        return self._carried(self.origin()[:, :text_length])

    @classmethod
    def of_slices(cls, slices: Sequence["Tokens"]) -> "Tokens":
        """The tokens of a batch from those of its slices, which went through the same layers."""
        first = slices[0]
        if len(slices) == 1:
            return first
        decisions = zip(*(part.history for part in slices), strict=True)
        origins = [part.origin for part in slices]
        return replace(
            first,
            streams=tuple(torch.cat(parts) for parts in zip(*(part.streams for part in slices), strict=True)),
            size=torch.cat([part.size for part in slices]),
            biases=tuple(_rows(parts) for parts in zip(*(part.biases for part in slices), strict=True)),
            origin=lambda: torch.cat([origin() for origin in origins]),
            history=tuple((Decision.of_slices([d for d, _ in parts]), parts[0][1]) for parts in decisions),
            counts=_rows([part.counts for part in slices]),
        )

    def with_streams(self, *streams: Tensor) -> "Tokens":
        """The same tokens with new states."""
        return Tokens(streams, self.size, self.biases, self.text_length, self.origin, self.history, self.counts)

    def reduce(self, decision: Decision) -> "Tokens":
        """Apply a decision about text and image to everything: states, sizes, bias."""
        return decision.carry_out(self)

    def reduced(self, decision: Decision) -> "Tokens":
        """As `reduce`, by the code of a decision."""
        history = (*self.history, (decision, 0))
        if decision.code is None:  # nothing moves
            biases = self.biases if decision.bias is None else self._split(decision.bias, decision.slots[0])
            return replace(self, biases=biases, history=history)
        if kernels.usable(self.streams[0]):
            streams, size, biases = self._reduce_fused(decision, decision.code)
        else:
            streams, size, biases = self._reduce_plain(decision)
        return Tokens(streams, size, biases, decision.slots[0], self.origin, history, decision.lengths)

    def _reduce_plain(self, decision: Decision) -> tuple[tuple[Tensor, ...], Tensor, tuple[Tensor | None, ...]]:
        if decision.weight is None:
            share, size = decision.shares(self.size)
        else:
            share, size = decision.shares(decision.weight, self.size)
        if len(self.streams) == 1:
            streams: tuple[Tensor, ...] = (decision.apply(self.streams[0], share),)
        else:
            T, kept = self.text_length, decision.slots[0]
            text, image = self.streams
            if not decision.stays[0]:
                text = decision.apply(text, share[:, :kept, :T])
            if not decision.stays[1]:
                image = decision.apply(image, share[:, kept:, T:])
            streams = text, image
        bias = decision.bias
        if bias is None:
            bias = size.log()[:, None, None] if decision.proportional else attention_bias(size > 0)
        return streams, size, self._split(bias.to(self._bias_dtype), decision.slots[0])

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


def _rows(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The rows of all parts, or None where there is nothing."""
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


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
