# ruff: noqa: ANN001, ANN201 - what device code takes is described, not typed
"""Device functions that several kernels share: floats in integer order, the best few of a block, ranks to slots."""

import triton
import triton.language as tl

GONE = tl.constexpr(2**30)
"""Code of a token that has no output slot, and a number larger than any index."""


@triton.jit
def ordered(x):
    """Bits ``uint32`` of float32 ``x`` that compare as the floats do; never 0, and -0.0 is 0.0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)


@triton.jit
def best(bits, count):
    """Flag the ``count`` largest of ``bits (n,)`` uint32; ties go to the lower rank, and 0 is never flagged.

    The threshold is found two bits at a time: how many reach each of its three candidates is one packed sum. So a
    choice costs 16 sums over the block, however long it is, and neither a sort nor an (n, n) comparison.
    """
    SHORT: tl.constexpr = bits.shape[0] <= 512
    FIELD: tl.constexpr = 10 if SHORT else 21
    PACKED: tl.constexpr = tl.int32 if SHORT else tl.int64
    LOW: tl.constexpr = 2**FIELD - 1
    none, one = tl.full((), 0, PACKED), tl.full((), 1, PACKED)
    two = one + (one << FIELD)  # what reaches the second candidate reaches the first as well
    three = two + (one << (2 * FIELD))
    threshold = tl.full((), 0, tl.uint32)
    for step in tl.static_range(16):
        unit = tl.full((), 1 << (30 - 2 * step), tl.uint32)
        first = threshold + unit
        second = first + unit
        third = second + unit
        upper = tl.where(bits >= third, three, tl.where(bits >= second, two, one))
        reached = tl.sum(tl.where(bits >= first, upper, none), 0)
        digit = ((reached & LOW) >= count).to(tl.uint32)
        digit += (((reached >> FIELD) & LOW) >= count).to(tl.uint32)
        digit += ((reached >> (2 * FIELD)) >= count).to(tl.uint32)
        threshold += digit * unit
    above = bits > threshold
    level = (bits == threshold) & (bits > 0)
    rest = count - tl.sum(above.to(tl.int32), 0)
    return above | (level & (tl.cumsum(level.to(tl.int32), 0) <= rest))


@triton.jit
def slots_of(rank, real, index_ptr, first, words, gap, INDEXED: tl.constexpr):
    """Input slots of the tokens of these ranks.

    Args:
        rank: Ranks after pruning.
        real: Which of them exist.
        index_ptr: The slots of the tokens that pruning left; read if ``INDEXED``.
        first: Slot of rank 0.
        words: Rank before which ``gap`` slots are skipped (the padded words of a block that spans text and image).
        gap: How many are skipped there.
        INDEXED: Whether anything was pruned.
    """
    if INDEXED:  # noqa: SIM108 - of two kinds
        slots = tl.load(index_ptr + rank, mask=real, other=0)
    else:
        slots = first + rank + tl.where(rank >= words, gap, 0)
    return slots
