# ruff: noqa: ANN001, ANN201 - what device code takes is described, not typed
"""Second launch of a decision: prune the image by its scores, and find each proposer's most similar receiver.

Every program that matches a part of the image prunes it anew, and the same way: that is cheaper than a launch between.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from pumer.kernels.device import GONE, best, ordered, slots_of
from pumer.kernels.layout import Layout, blocks, power_of_two


@triton.jit
def match_kernel(
    lengths_ptr, table_ptr, work_ptr, slots_ptr, T, V, skipped, words, scores_at, pairs_at, pairs, image_pairs,
    index_at, text_parts, rows,
    DH: tl.constexpr, DP: tl.constexpr, VB: tl.constexpr, BE: tl.constexpr, BR: tl.constexpr, RB: tl.constexpr,
    RC: tl.constexpr, RG: tl.constexpr, SHORT: tl.constexpr, PRUNE: tl.constexpr, MERGE: tl.constexpr,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (text parts + image parts, B). ``work_ptr`` and ``slots_ptr`` are one workspace, as floats and as integers.

    ``skipped`` are the text slots of a block that spans text and image, ``rows`` partial scores are added ``RC`` at a
    time in ``RG`` groups. Text and image go through the same code, so that there is less of it to fetch.

    Proposer ``i`` has rank ``2 * i``, receiver ``j`` rank ``2 * j + 1``; proposer 0, [CLS], never proposes. Stored are
    the bits of the similarity in integer order (0: no proposal) and ``j``.
    """
    b = tl.program_id(1).to(tl.int64)
    part = tl.program_id(0)
    is_image = part >= text_parts
    work, slots = work_ptr + b * words, slots_ptr + b * words
    read = tl.load(lengths_ptr + 2 * b).to(tl.int32)
    n = tl.load(lengths_ptr + 2 * b + 1).to(tl.int32)
    first, gap = 0, 0
    pair = slots + pairs_at
    row = read
    count = read
    index = slots + index_at
    if WHOLE:
        count = n + read
        row = count
        gap = skipped - read
    elif is_image:
        part -= text_parts
        first = T
        pair += image_pairs
        row = T + 1 + n
        count = n
        index += part * V
        if PRUNE:
            r, h = tl.arange(0, VB), tl.arange(0, RC)
            score = tl.zeros((VB,), tl.float32)
            for g in tl.static_range(RG):
                which = g * RC + h
                inside = (which < rows)[:, None] & (r < V)[None, :]
                some = tl.load(work + scores_at + which[:, None] * V + r[None, :], mask=inside, other=0.0)
                score += tl.sum(some, 0)
            order = ordered(tl.where(r == 0, float("inf"), score))
            count = tl.load(table_ptr + 3 * row)  # after the scores: they need not wait for it
            stays = best(tl.where(r < n, order, 0), count, SHORT)
            tl.store(index + tl.cumsum(stays.to(tl.int32), 0) - 1, T + r, mask=stays)
            tl.debug_barrier()  # the slots are read back by other threads than wrote them
        else:
            count = tl.load(table_ptr + 3 * row)
    merges = tl.load(table_ptr + 3 * row + 1)
    if not MERGE:
        merges = tl.where(is_image, 0, merges)
    if (merges > 0) & (2 * part * BE < count):
        indexed = is_image & PRUNE
        d = tl.arange(0, DP)
        i = part * BE + tl.arange(0, BE)
        real = 2 * i < count
        slot = slots_of(2 * i, real, index, first, read, gap, indexed)
        mine = tl.load(work + slot[:, None] * DH + d[None, :], mask=real[:, None] & (d < DH)[None, :], other=0.0)
        most = tl.full((BE,), float("-inf"), tl.float32)
        receiver = tl.zeros((BE,), tl.int32)
        for block in range(0, RB):
            j = block * BR + tl.arange(0, BR)
            there = 2 * j + 1 < count
            other = slots_of(2 * j + 1, there, index, first, read, gap, indexed)
            theirs = tl.load(
                work + other[:, None] * DH + d[None, :], mask=there[:, None] & (d < DH)[None, :], other=0.0
            )
            similarity = tl.dot(mine, tl.trans(theirs), input_precision=PRECISION) + 0.0
            similarity = tl.where(there[None, :], similarity, float("-inf"))
            here = tl.max(similarity, 1)
            at = tl.min(tl.where(similarity == here[:, None], j[None, :], GONE), 1)  # ties go to the lower rank
            receiver = tl.where(here > most, at, receiver)
            most = tl.maximum(here, most)
        bits = tl.where(real & (i > 0) & (most > float("-inf")), ordered(most), 0)
        tl.store(pair + i, bits.to(tl.int32, bitcast=True), mask=real)
        tl.store(pair + pairs + i, receiver, mask=real)


PRECISION = "tf32x3"
"""Of the products that compare tokens: on tensor cores, in three parts, so that they are as exact as in float32; or
"ieee"."""


def constants(shape: Layout, width: int, prune: bool, merge: bool, whole: bool) -> tuple[dict[str, Any], int]:
    """Compile-time arguments, and warps.

    Args:
        shape: Sizes of the decision.
        width: ``Dh``.
        prune: Whether the image is pruned.
        merge: Whether the image is matched.
        whole: Whether text and image are one block.
    """
    deep, wide = power_of_two(width), power_of_two(shape.image)
    # As many receivers at once as keep registers few enough for two programs on a multiprocessor.
    most = min(128, 2048 // shape.proposers, max(16, 8192 // deep))
    receivers = min(most, power_of_two(max(shape.text, shape.image) // 2))
    warps = 4 if wide <= 512 else 8 if wide <= 2048 else 16
    together = max(1, min(power_of_two(shape.rows, 1), 1024 * warps // wide)) if prune else 1
    values: dict[str, Any] = {
        "DH": width, "DP": deep, "VB": wide, "BE": shape.proposers, "BR": receivers,
        "RB": max(1, blocks(max(shape.text, shape.image) // 2, receivers)),
        "RC": together, "RG": blocks(shape.rows, together) if prune else 0, "SHORT": shape.image < 1024,
        "PRUNE": prune, "MERGE": merge, "WHOLE": whole, "PRECISION": PRECISION,
    }  # fmt: skip
    return values, warps


def launch(
    lengths: Tensor, table: Tensor, work: Tensor, slots: Tensor, shape: Layout, width: int, text_slots: int,
    prune: bool, merge: bool, whole: bool,
) -> None:  # fmt: skip
    """Fill in who stays, and who proposes to whom.

    Args:
        lengths: ``(B, 2)`` int64.
        table: ``(rows, 3)`` int32: kept, merges, left.
        work: ``(B, words)`` float32, with features and scores.
        slots: The same memory as int32.
        shape: Where things are in it.
        width: ``Dh``.
        text_slots: ``T`` of the input.
        prune: Whether the image is pruned.
        merge: Whether the image is matched.
        whole: Whether text and image are one block.
    """
    values, warps = constants(shape, width, prune, merge, whole)
    match_kernel[(shape.text_parts + shape.image_parts, lengths.shape[0])](
        lengths, table, work, slots, shape.text, shape.image, text_slots, shape.words, shape.scores_at, shape.pairs_at,
        shape.pairs, shape.image_pairs, shape.index_at, shape.text_parts, shape.rows,
        **values, num_warps=warps, num_stages=2 if width <= 64 else 1,
    )  # fmt: skip
