"""What flows through a reduced model: Tokens (one stream), Decision (one reduction), Cues (what it is based on).

Letters: ``B`` batch, ``N`` tokens of one stream, ``N0`` tokens that entered the model, ``K`` tokens after a decision,
``M`` merges, ``D`` width, ``H`` heads, ``Dh`` head width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pumer.functional import gather_tokens


@dataclass(frozen=True)
class Decision:
    """What one reduction does to a stream; decided once, applied to every per-token tensor.

    Attributes:
        index: ``(B, K)`` int64, the input slot that stands at each output slot (for a merged token: its target).
        mask: ``(B, K)`` bool, False for free output slots.
        source: ``(B, M)`` int64, input slots that are merged away.
        target: ``(B, M)`` int64, the output slot each of them is merged into.
        valid: ``(B, M)`` bool, False for merges that do not take place.
        destination: ``(B, N)`` int64, output slot of each input slot, -1 if pruned or padding.
        bias: ``(B, 1, 1, K)`` attention bias of the output tokens, or None for the one that follows from their sizes.
        weighted: Whether a merged token is the mean weighted by size, or the plain mean of what is merged.
        weight: ``(B, N)`` above zero, what the mean is weighted by instead of size, or None.
        proportional: Whether later attention counts a merged token as often as it has parts (``log(size)``).
        split: Output slots and merges of the first of two joined blocks, or None if there is only one; (0, 0) where
            text and image are one block from now on.
    """

    index: Tensor
    mask: Tensor
    source: Tensor
    target: Tensor
    valid: Tensor
    destination: Tensor
    bias: Tensor | None = None
    weighted: bool = True
    weight: Tensor | None = None
    proportional: bool = True
    split: tuple[int, int] | None = None

    @classmethod
    def build(
        cls, index: Tensor, mask: Tensor, source: Tensor, target: Tensor, valid: Tensor, tokens: int
    ) -> "Decision":
        """Complete a decision from what stays and what is merged.

        Args:
            index: ``(B, K)`` input slots that stay, in output order.
            mask: ``(B, K)`` bool.
            source: ``(B, M)`` input slots merged away.
            target: ``(B, M)`` *input* slots that receive them; each must be in ``index``.
            valid: ``(B, M)`` bool.
            tokens: ``N``, the number of input slots.

        Returns:
            The decision, with targets as output slots and ``destination`` filled in.
        """
        slots = torch.arange(index.shape[1], device=index.device)
        sink = tokens  # free slots and merges that do not take place write here
        destination = index.new_full((index.shape[0], tokens + 1), -1)
        destination = destination.scatter(1, torch.where(mask, index, sink), slots.expand_as(index))
        target = destination.gather(1, torch.where(valid, target, index[:, :1]))
        destination = destination.scatter(1, torch.where(valid, source, sink), target)
        return cls(index, mask, source, target, valid, destination[:, :tokens])

    @classmethod
    def identity(cls, mask: Tensor) -> "Decision":
        """The decision that changes nothing. Args: mask: ``(B, N)`` bool."""
        slots = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
        none = slots[:, :0]
        return cls(slots, mask, none, none, mask[:, :0], torch.where(mask, slots, -1))

    @classmethod
    def join(cls, first: "Decision", second: "Decision") -> "Decision":
        """The decisions of two neighbouring blocks as one; how tokens are averaged and weighed is the first's.

        That suits a record of two streams; tokens of one stream are reduced by `of_stream`.

        Args:
            first: of ``N1`` tokens, which leaves ``K1`` slots.
            second: of ``N2`` tokens, which leaves ``K2``; the result is of ``N1 + N2`` and leaves ``K1 + K2``.
        """
        tokens, kept = first.destination.shape[1], first.index.shape[1]
        moved = torch.where(second.destination < 0, -1, second.destination + kept)
        bias = None
        if first.bias is not None and second.bias is not None:
            bias = torch.cat([first.bias, second.bias], dim=-1)
        weights = None
        if first.weight is not None or second.weight is not None:  # a block that merges nothing needs none
            weights = torch.cat([_weight(first), _weight(second)], dim=1)
        return cls(
            index=torch.cat([first.index, second.index + tokens], dim=1),
            mask=torch.cat([first.mask, second.mask], dim=1),
            source=torch.cat([first.source, second.source + tokens], dim=1),
            target=torch.cat([first.target, second.target + kept], dim=1),
            valid=torch.cat([first.valid, second.valid], dim=1),
            destination=torch.cat([first.destination, moved], dim=1),
            bias=bias,
            weighted=first.weighted,
            weight=weights,
            proportional=first.proportional,
            split=(kept, first.source.shape[1]),
        )

    @classmethod
    def of_stream(cls, text: "Decision", image: "Decision") -> "Decision":
        """One decision for a stream of two blocks, from the decision of each block; shapes as of `join`.

        Raises:
            ValueError: when one counts a merged token by its size and the other does not: attention over a stream has
                one rule.
        """
        if (text.weighted, text.proportional) != (image.weighted, image.proportional):
            raise ValueError("the decisions of one stream must agree on `weighted` and `proportional`")
        return cls.join(text, image)

    def blind(self) -> "Decision":
        """The same decision, made without regard to modality: afterwards the stream counts as image."""
        return replace(self, split=(0, 0))

    def with_policy(
        self,
        *,
        weighted: bool = True,
        weight: Tensor | None = None,
        proportional: bool = True,
        bias: Tensor | None = None,
    ) -> "Decision":
        """The same decision with another way of averaging and of weighing later attention."""
        return replace(self, weighted=weighted, weight=weight, proportional=proportional, bias=bias)

    def _incidence(self, dtype: torch.dtype) -> Tensor:
        """``(B, K, M)``: one where a merge goes into a slot. A product with it is deterministic, a scatter is not."""
        slots = torch.arange(self.index.shape[1], device=self.index.device)
        return ((self.target[:, None, :] == slots[:, None]) & self.valid[:, None, :]).to(dtype)

    def select(self, x: Tensor) -> Tensor:
        """``(B, N[, D])`` to ``(B, K[, D])``: the value of the token that stands in each slot."""
        return gather_tokens(x, self.index)

    def total(self, x: Tensor) -> Tensor:
        """``(B, N)`` to ``(B, K)``: sums over what is merged (sizes); free slots are zero."""
        kept = self.select(x) * self.mask
        if self.source.shape[1] == 0:
            return kept
        return kept + (self._incidence(x.dtype) * gather_tokens(x, self.source)[:, None, :]).sum(dim=-1)

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """Average each merged token; tokens that nothing is merged into are copied bit for bit.

        Args:
            x: ``(B, N, D)``.
            weight: ``(B, N)``, weight of each token in the average (its size, or ones).

        Returns:
            ``(B, K, D)``; free slots are zero.
        """
        kept = self.select(x)
        if self.source.shape[1] == 0:
            return kept * self.mask[:, :, None].to(x.dtype)
        share = self._incidence(weight.dtype) * gather_tokens(weight, self.source)[:, None, :]
        own = self.select(weight) * self.mask
        whole = (own + share.sum(dim=-1)).masked_fill(~self.mask, 1.0)
        share = (share / whole[:, :, None]).to(x.dtype)
        own_share = (own / whole)[:, :, None].to(x.dtype)
        merged = gather_tokens(x, self.source)
        if self.split is None or self.split == (0, 0):
            return torch.addcmul(share @ merged, kept, own_share)
        slots, merges = self.split  # nothing merges across blocks: two small products instead of a large one
        first = torch.addcmul(share[:, :slots, :merges] @ merged[:, :merges], kept[:, :slots], own_share[:, :slots])
        second = torch.addcmul(share[:, slots:, merges:] @ merged[:, merges:], kept[:, slots:], own_share[:, slots:])
        return torch.cat([first, second], dim=1)

    def trace(self, owner: Tensor) -> Tensor:
        """Carry a source map through: ``owner (B, N0)`` of input slots (-1: gone) to one of output slots."""
        moved = self.destination.gather(1, owner.clamp(min=0))
        return torch.where(owner < 0, -1, moved)


@dataclass(frozen=True)
class Tokens:
    """One stream of tokens: text in the first ``text_length`` slots, image after it, each compact; either may be empty.

    Attributes:
        states: ``(B, N, D)``.
        mask: ``(B, N)`` bool, real tokens.
        size: ``(B, N)`` float32, how many input tokens each one holds; 0 for free slots.
        bias: ``(B, 1, 1, N)`` added to attention logits, or None if nothing is hidden or weighted.
        source: ``(B, N0)`` int64, slot that holds each input token now; -1 if pruned or padding.
        text_length: Slots of the text block (static).
    """

    states: Tensor
    mask: Tensor
    size: Tensor
    bias: Tensor | None
    source: Tensor
    text_length: int

    def with_states(self, states: Tensor) -> "Tokens":
        """The same tokens with new states ``(B, N, D)``."""
        return replace(self, states=states)

    def reduce(self, decision: Decision) -> "Tokens":
        """Apply a decision to everything: states, mask, sizes, bias and sources.

        Args:
            decision: About all slots; joined from one about the text and one about the image if the stream has both.
        """
        size = decision.total(self.size)
        bias = decision.bias
        if bias is None:
            bias = attention_bias(decision.mask, size, decision.proportional)
        weight = decision.weight if decision.weight is not None else self.size
        if not decision.weighted:
            weight = torch.ones_like(weight)
        states = decision.apply(self.states, weight)
        slots = decision.index.shape[1] if self.text_length else 0
        text_length = slots if decision.split is None else decision.split[0]
        return Tokens(states, decision.mask, size, bias, decision.trace(self.source), text_length)

    @classmethod
    def join(cls, text: "Tokens", image: "Tokens") -> "Tokens":
        """Two streams of the same width seen as one, the text first; for recording, no model runs on it."""
        slots = text.mask.shape[1]
        return cls(
            states=torch.cat([text.states, image.states], dim=1),
            mask=torch.cat([text.mask, image.mask], dim=1),
            size=torch.cat([text.size, image.size], dim=1),
            bias=torch.cat([_explicit_bias(text), _explicit_bias(image)], dim=-1),
            source=torch.cat([text.source, torch.where(image.source < 0, -1, image.source + slots)], dim=1),
            text_length=slots,
        )


def _weight(decision: Decision) -> Tensor:
    if decision.weight is not None:
        return decision.weight
    return torch.ones(decision.destination.shape, device=decision.destination.device)


def _explicit_bias(tokens: Tokens) -> Tensor:
    return attention_bias(tokens.mask, tokens.size, proportional=False) if tokens.bias is None else tokens.bias


def attention_bias(mask: Tensor, size: Tensor, proportional: bool) -> Tensor:
    """Bias that hides free slots and, if ``proportional``, counts a merged token as often as it has parts.

    Args:
        mask: ``(B, N)`` bool.
        size: ``(B, N)``.
        proportional: Whether sizes weigh.

    Returns:
        ``(B, 1, 1, N)``: ``log(size)`` or 0, minus infinity where masked.
    """
    bias = size.log() if proportional else torch.zeros_like(size)
    return bias.masked_fill(~mask, -torch.inf)[:, None, None, :]


@dataclass(frozen=True)
class Block:
    """One modality of the stream(s), as a reducer sees it.

    Attributes:
        mask: ``(B, n)`` bool, real tokens, compact; rank 0 is [CLS].
        bias: ``(B, 1, 1, n)`` attention bias, or None.
        keys: ``(B, H, n, Dh)`` attention keys, or None if the reducer does not need them.
        states: ``(B, n, D)`` after the attention, or None if the reducer does not need them.
    """

    mask: Tensor
    bias: Tensor | None
    keys: Tensor | None
    states: Tensor | None = None


@dataclass(frozen=True)
class Cues:
    """What a reducer may look at when it decides; an adapter fills in what the reducer ``needs``.

    Attributes:
        text: The text block.
        image: The image block.
        text_rows: ``(B, H, T, V)`` text-to-image attention probabilities, or None.
        cls_row: ``(B, H, V)`` attention probabilities of the image's [CLS], or None.
        one_stream: Whether text and image attend to each other as one sequence, so that they have comparable keys.
    """

    text: Block
    image: Block
    text_rows: Tensor | None = None
    cls_row: Tensor | None = None
    one_stream: bool = False
