# ruff: noqa: ANN001, ANN201 - what device code takes is described, not typed
"""Third launch of a decision: which proposals happen, and where every token goes."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from pumer.kernels.device import GONE, best, slots_of
from pumer.kernels.layout import Layout, power_of_two


@triton.jit
def select_kernel(
    lengths_ptr, table_ptr, slots_ptr, code_ptr, following_ptr, T, V, skipped, Kt, words, pairs_at, pairs, image_pairs,
    index_at,
    NB: tl.constexpr, SHORT: tl.constexpr, PRUNE: tl.constexpr, MERGE_TEXT: tl.constexpr, MERGE: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """Grid (2, B): text and image of a sample; (1, B) if both are one block. Both go through the same code."""
    b = tl.program_id(1).to(tl.int64)
    read = tl.load(lengths_ptr + 2 * b).to(tl.int32)
    seen = tl.load(lengths_ptr + 2 * b + 1).to(tl.int32)
    workspace = slots_ptr + b * words
    code = code_ptr + b * (T + V)
    pair = workspace + pairs_at
    if WHOLE:
        is_image = 1
        first, out, slots, gap = 0, 0, V, skipped - read
        row = read + seen
    else:
        is_image = tl.program_id(0)
        first, out = is_image * T, is_image * Kt
        slots, gap = tl.where(is_image == 1, V, T), 0
        row = tl.where(is_image == 1, T + 1 + seen, read)
    pair += is_image * image_pairs
    r, j = tl.arange(0, NB), tl.arange(0, NB // 2)
    there = 2 * j < slots
    if MERGE or MERGE_TEXT:  # read before their number is known: neither load waits for the other
        bits = tl.load(pair + j, mask=there, other=0).to(tl.uint32, bitcast=True)
        receiver = tl.load(pair + pairs + j, mask=there, other=0)
    counts = table_ptr + 3 * row
    kept, merges, left = tl.load(counts), tl.load(counts + 1), tl.load(counts + 2)
    if WHOLE:
        kept = read + seen
        tl.store(following_ptr + 2 * b, tl.full((), 0, tl.int64))
    tl.store(following_ptr + 2 * b + is_image, left.to(tl.int64))
    even, odd = 2 * j, 2 * j + 1
    is_even, is_odd = even < kept, odd < kept
    tl.store(code + first + r, tl.full((NB,), GONE, tl.int32), mask=r < slots)
    if MERGE or MERGE_TEXT:
        if not MERGE:
            merges = tl.where(is_image == 1, 0, merges)
        if not MERGE_TEXT:
            merges = tl.where(is_image == 1, merges, 0)
        merged = best(tl.where(is_even & (merges > 0), bits, 0), merges, SHORT)
        before = tl.cumsum(merged.to(tl.int32), 0)
        moved = out + odd - before
        tl.store(pair + 2 * pairs + j, moved, mask=is_odd)
        tl.debug_barrier()  # where a receiver moves is read back by other threads; codes are written a second time
        into = tl.load(pair + 2 * pairs + receiver, mask=merged, other=0)
        even_code = tl.where(merged, 2 * into + 1, 2 * (out + even - before))
    else:
        tl.debug_barrier()  # codes are written a second time, by other threads
        moved = out + odd
        even_code = 2 * (out + even)
    indexed = (is_image == 1) & PRUNE
    even_slot = slots_of(even, is_even, workspace + index_at, first, read, gap, indexed)
    odd_slot = slots_of(odd, is_odd, workspace + index_at, first, read, gap, indexed)
    tl.store(code + even_slot, even_code, mask=is_even)
    tl.store(code + odd_slot, 2 * moved, mask=is_odd)


def constants(shape: Layout, prune: bool, merge_text: bool, merge: bool, whole: bool) -> tuple[dict[str, Any], int]:
    """Compile-time arguments, and warps; the arguments are those of `launch`."""
    longest = max(shape.text, shape.image)
    wide = power_of_two(longest)
    values: dict[str, Any] = {
        "NB": wide, "SHORT": (longest + 1) // 2 < 1024, "PRUNE": prune, "MERGE_TEXT": merge_text, "MERGE": merge,
        "WHOLE": whole,
    }  # fmt: skip
    return values, 2 if wide <= 256 else 4 if wide <= 1024 else 8 if wide <= 2048 else 16


def launch(
    lengths: Tensor, table: Tensor, slots: Tensor, code: Tensor, following: Tensor, shape: Layout, text_slots: int,
    text_left: int, prune: bool, merge_text: bool, merge: bool, whole: bool,
) -> None:  # fmt: skip
    """Fill in the decision.

    Args:
        lengths: ``(B, 2)`` int64.
        table: ``(rows, 3)`` int32: kept, merges, left.
        slots: ``(B, words)`` int32, the workspace.
        code: ``(B, T + V)`` int32, the result.
        following: ``(B, 2)`` int64, the result.
        shape: Where things are in the workspace.
        text_slots: ``T`` of the input.
        text_left: ``Kt``, where the image's output slots begin.
        prune: Whether the image is pruned.
        merge_text: Whether text is merged.
        merge: Whether the image is merged.
        whole: Whether text and image are one block.
    """
    values, warps = constants(shape, prune, merge_text, merge, whole)
    select_kernel[(1 if whole else 2, lengths.shape[0])](
        lengths, table, slots, code, following, shape.text, shape.image, text_slots, text_left, shape.words,
        shape.pairs_at, shape.pairs, shape.image_pairs, shape.index_at, **values, num_warps=warps,
    )  # fmt: skip
