"""Decision: what one reduction does to text and image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pumer.functional import gather_tokens
from pumer.kernels import GONE

if TYPE_CHECKING:
    from pumer.tokens.tokens import Tokens


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


class Batch:
    """A frozen dataclass whose tensors have a row for each example; `each_tensor` looks inside."""


@dataclass(frozen=True)
class Decision(Batch):
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
        whole: Decision = slices[0] if len(slices) == 1 else each_tensor(slices, torch.cat)
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
        moved: Decision = each_tensor([self], lambda tensors: tensors[0].to(device))
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


def each_tensor(parts: Sequence[Any], change: Callable[[list[Tensor]], Tensor]) -> Any:
    """One of parts that are alike: each tensor, also inside tuples and batches, is made of theirs."""
    first = parts[0]
    if isinstance(first, Tensor):
        return change(list(parts))
    if isinstance(first, tuple):
        return tuple(each_tensor(each, change) for each in zip(*parts, strict=True))
    if isinstance(first, Batch):
        names = [x.name for x in fields(parts[0])]
        return replace(
            parts[0], **{name: each_tensor([getattr(part, name) for part in parts], change) for name in names}
        )
    return first
