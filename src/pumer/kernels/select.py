# ruff: noqa: ANN001, ANN201, ANN202 - what device code takes is described, not typed
"""Third launch of a decision: which proposals happen, and where every token goes."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from pumer.kernels.device import GONE, best, slots_of
from pumer.kernels.layout import Layout, power_of_two


@triton.jit
def _place(
    code_ptr, bits_ptr, receiver_ptr, moved_ptr, index_ptr, slots, first, out, kept, merges, words, gap,
    NB: tl.constexpr, MERGE: tl.constexpr, INDEXED: tl.constexpr,
):  # fmt: skip
    """Codes of one block of ``slots`` slots from ``first`` on, whose output slots begin at ``out``."""
    r, j = tl.arange(0, NB), tl.arange(0, NB // 2)
    even, odd = 2 * j, 2 * j + 1
    is_even, is_odd = even < kept, odd < kept
    tl.store(code_ptr + first + r, tl.full((NB,), GONE, tl.int32), mask=r < slots)
    if MERGE:
        bits = tl.load(bits_ptr + j, mask=is_even & (merges > 0), other=0).to(tl.uint32, bitcast=True)
        receiver = tl.load(receiver_ptr + j, mask=is_even & (merges > 0), other=0)
        merged = best(bits, merges)
        before = tl.cumsum(merged.to(tl.int32), 0)
        moved = out + odd - before
        tl.store(moved_ptr + j, moved, mask=is_odd)
        tl.debug_barrier()  # where a receiver moves is read back by other threads; codes are written a second time
        into = tl.load(moved_ptr + receiver, mask=merged, other=0)
        even_code = tl.where(merged, 2 * into + 1, 2 * (out + even - before))
    else:
        tl.debug_barrier()  # codes are written a second time, by other threads
        moved = out + odd
        even_code = 2 * (out + even)
    even_slot = slots_of(even, is_even, index_ptr, first, words, gap, INDEXED)
    odd_slot = slots_of(odd, is_odd, index_ptr, first, words, gap, INDEXED)
    tl.store(code_ptr + even_slot, even_code, mask=is_even)
    tl.store(code_ptr + odd_slot, 2 * moved, mask=is_odd)


@triton.jit
def select_kernel(
    lengths_ptr, table_ptr, slots_ptr, code_ptr, following_ptr, T, V, skipped, Kt, words, pairs_at, pairs, image_pairs,
    index_at,
    TB: tl.constexpr, VB: tl.constexpr, PRUNE: tl.constexpr, MERGE_TEXT: tl.constexpr, MERGE: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """Grid (2, B): text and image of a sample; (1, B) if both are one block."""
    b = tl.program_id(1).to(tl.int64)
    read = tl.load(lengths_ptr + 2 * b).to(tl.int32)
    seen = tl.load(lengths_ptr + 2 * b + 1).to(tl.int32)
    slots = slots_ptr + b * words
    code = code_ptr + b * (T + V)
    bits, receiver, moved = slots + pairs_at, slots + pairs_at + pairs, slots + pairs_at + 2 * pairs
    if WHOLE:
        row = table_ptr + 3 * (read + seen)
        tl.store(following_ptr + 2 * b, tl.full((), 0, tl.int64))
        tl.store(following_ptr + 2 * b + 1, tl.load(row + 2).to(tl.int64))
        _place(
            code, bits + image_pairs, receiver + image_pairs, moved + image_pairs, slots, V, 0, 0, read + seen,
            tl.load(row + 1), read, skipped - read, VB, MERGE, False,
        )  # fmt: skip
    else:
        is_image = tl.program_id(0)
        row = table_ptr + 3 * tl.where(is_image == 1, T + 1 + seen, read)
        kept, merges, left = tl.load(row), tl.load(row + 1), tl.load(row + 2)
        tl.store(following_ptr + 2 * b + is_image, left.to(tl.int64))
        if is_image == 0:
            _place(code, bits, receiver, moved, slots, T, 0, 0, kept, merges, 0, 0, TB, MERGE_TEXT, False)
        else:
            _place(
                code, bits + image_pairs, receiver + image_pairs, moved + image_pairs, slots + index_at, V, T, Kt, kept,
                merges, 0, 0, VB, MERGE, PRUNE,
            )  # fmt: skip


def constants(shape: Layout, prune: bool, merge_text: bool, merge: bool, whole: bool) -> tuple[dict[str, Any], int]:
    """Compile-time arguments, and warps; the arguments are those of `match.constants`."""
    wide = power_of_two(shape.image)
    values: dict[str, Any] = {
        "TB": power_of_two(shape.text), "VB": wide, "PRUNE": prune, "MERGE_TEXT": merge_text, "MERGE": merge,
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
