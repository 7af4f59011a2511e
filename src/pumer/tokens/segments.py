"""Segments: which token is what where text and image interleave."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from pumer.functional import compact
from pumer.kernels import GONE
from pumer.tokens.decision import Batch, Decision


class Counted(Protocol):
    """What a rule leaves of each length; see `pumer.reducers.tables.Tables`."""

    @property
    def left(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens left of each length of the text, and of the image."""

    @property
    def merged(self) -> int:
        """The most tokens that are merged away."""


@dataclass(frozen=True)
class Segments(Batch):
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

    def reduced(self, decision: Decision) -> "Segments":
        """Those of the tokens that are left."""
        segment, protected = decision.select(self.segment), decision.select(self.protected)
        rest = self.guarded, self.free_first, decision.known
        return Segments.of(segment, protected, decision.mask, decision.slots, *rest)

    def place(self, decision: Decision, found: Counted, counted: bool = True) -> Decision:
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
