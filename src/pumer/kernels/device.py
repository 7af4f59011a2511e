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
def best(bits, count, SHORT: tl.constexpr):
    """Flag the ``count`` largest of ``bits (n,)`` uint32; ties go to the lower rank, and 0 is never flagged.

    The threshold is found two bits at a time: how many reach each of its three candidates is one packed sum, of 32 bits
    if fewer than 1024 of them are above 0 (``SHORT``): Hopper adds these up in one instruction. The search ends as soon
    as exactly ``count`` reach it, mostly after 9 to 12 of 16 steps; it is a loop because at batch 1 a kernel waits for
    its own code to be fetched.
    """
    FIELD: tl.constexpr = 10 if SHORT else 21
    PACKED: tl.constexpr = tl.int32 if SHORT else tl.int64
    LOW: tl.constexpr = 2**FIELD - 1
    none, one = tl.full((), 0, PACKED), tl.full((), 1, PACKED)
    two = one + (one << FIELD)  # what reaches the second candidate reaches the first as well
    three = two + (one << (2 * FIELD))
    threshold = tl.full((), 0, tl.uint32)
    unit = tl.full((), 1 << 30, tl.uint32)
    exact = tl.full((), 0, tl.int32)
    while (unit > 0) & (exact == 0):
        first = threshold + unit
        second = first + unit
        third = second + unit
        upper = tl.where(bits >= third, three, tl.where(bits >= second, two, one))
        packed = tl.sum(tl.where(bits >= first, upper, none), 0)
        reach1, reach2, reach3 = packed & LOW, (packed >> FIELD) & LOW, packed >> (2 * FIELD)
        digit = (reach1 >= count).to(tl.uint32) + (reach2 >= count).to(tl.uint32) + (reach3 >= count).to(tl.uint32)
        threshold += digit * unit
        exact = ((reach1 == count) | (reach2 == count) | (reach3 == count)).to(tl.int32)
        unit = unit >> 2
    flagged = bits >= threshold
    if exact == 0:  # several are level with the last one
        level = (bits == threshold) & (bits > 0)
        above = bits > threshold
        rest = count - tl.sum(above.to(tl.int32), 0)
        flagged = above | (level & (tl.cumsum(level.to(tl.int32), 0) <= rest))
    return flagged


@triton.jit
def slots_of(rank, real, index_ptr, first, words, gap, indexed):
    """Input slots of the tokens of these ranks.

    Args:
        rank: Ranks after pruning.
        real: Which of them exist.
        index_ptr: The slots of the tokens that pruning left; read if ``indexed``.
        first: Slot of rank 0.
        words: Rank before which ``gap`` slots are skipped (the padded words of a block that spans text and image).
        gap: How many are skipped there.
        indexed: Whether anything was pruned.
    """
    kept = tl.load(index_ptr + rank, mask=real & indexed, other=0)
    return tl.where(indexed, kept, first + rank + tl.where(rank >= words, gap, 0))
