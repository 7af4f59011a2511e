# ruff: noqa: ANN001, ANN201, ANN202 - what device code takes is described, not typed
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
def _propose(
    features_ptr, bits_ptr, receiver_ptr, index_ptr, i0, count, first, words, gap, DH: tl.constexpr, DP: tl.constexpr,
    BE: tl.constexpr, BR: tl.constexpr, RB: tl.constexpr, INDEXED: tl.constexpr,
):  # fmt: skip
    """The best receiver of the proposers ``i0`` to ``i0 + BE`` among ``count`` tokens in order of rank.

    Proposer ``i`` has rank ``2 * i``, receiver ``j`` rank ``2 * j + 1``; proposer 0, [CLS], never proposes. Stored are
    the bits of the similarity in integer order (0: no proposal) and ``j``.
    """
    d = tl.arange(0, DP)
    i = i0 + tl.arange(0, BE)
    real = 2 * i < count
    slot = slots_of(2 * i, real, index_ptr, first, words, gap, INDEXED)
    mine = tl.load(features_ptr + slot[:, None] * DH + d[None, :], mask=real[:, None] & (d < DH)[None, :], other=0.0)
    most = tl.full((BE,), float("-inf"), tl.float32)
    receiver = tl.zeros((BE,), tl.int32)
    for block in range(0, RB):
        j = block * BR + tl.arange(0, BR)
        there = 2 * j + 1 < count
        other = slots_of(2 * j + 1, there, index_ptr, first, words, gap, INDEXED)
        theirs = tl.load(
            features_ptr + other[:, None] * DH + d[None, :], mask=there[:, None] & (d < DH)[None, :], other=0.0
        )
        similarity = tl.dot(mine, tl.trans(theirs), input_precision="ieee") + 0.0
        similarity = tl.where(there[None, :], similarity, float("-inf"))
        here = tl.max(similarity, 1)
        at = tl.min(tl.where(similarity == here[:, None], j[None, :], GONE), 1)  # ties go to the lower rank
        receiver = tl.where(here > most, at, receiver)
        most = tl.maximum(here, most)
    bits = tl.where(real & (i > 0) & (most > float("-inf")), ordered(most), 0)
    tl.store(bits_ptr + i, bits.to(tl.int32, bitcast=True), mask=real)
    tl.store(receiver_ptr + i, receiver, mask=real)


@triton.jit
def match_kernel(
    lengths_ptr, table_ptr, work_ptr, slots_ptr, T, V, skipped, words, scores_at, pairs_at, pairs, image_pairs,
    index_at, text_parts, rows,
    DH: tl.constexpr, DP: tl.constexpr, VB: tl.constexpr, BE: tl.constexpr, BR: tl.constexpr, TR: tl.constexpr,
    VR: tl.constexpr, RC: tl.constexpr, RG: tl.constexpr, PRUNE: tl.constexpr, MERGE_TEXT: tl.constexpr,
    MERGE: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Grid (text parts + image parts, B). ``work_ptr`` and ``slots_ptr`` are one workspace, as floats and as integers.

    ``skipped`` are the text slots of a block that spans text and image, ``rows`` partial scores are added ``RC`` at a
    time in ``RG`` groups.
    """
    b = tl.program_id(1).to(tl.int64)
    part = tl.program_id(0)
    work, slots = work_ptr + b * words, slots_ptr + b * words
    bits, receiver = slots + pairs_at, slots + pairs_at + pairs
    if part < text_parts:
        if MERGE_TEXT:
            count = tl.load(lengths_ptr + 2 * b).to(tl.int32)
            _propose(work, bits, receiver, slots, part * BE, count, 0, 0, 0, DH, DP, BE, BR, TR, False)
    else:
        part -= text_parts
        read = tl.load(lengths_ptr + 2 * b).to(tl.int32)
        n = tl.load(lengths_ptr + 2 * b + 1).to(tl.int32)
        if WHOLE:
            n += read
            kept = n
            row = n
            gap = skipped - read
        else:
            gap = 0
            row = T + 1 + n
            kept = tl.load(table_ptr + 3 * row)
        index = slots + index_at + part * V
        if PRUNE:
            r, h = tl.arange(0, VB), tl.arange(0, RC)
            score = tl.zeros((VB,), tl.float32)
            for g in tl.static_range(RG):
                which = g * RC + h
                inside = (which < rows)[:, None] & (r < V)[None, :]
                some = tl.load(work + scores_at + which[:, None] * V + r[None, :], mask=inside, other=0.0)
                score += tl.sum(some, 0)
            order = ordered(tl.where(r == 0, float("inf"), score))
            stays = best(tl.where(r < n, order, 0), kept)
            tl.store(index + tl.cumsum(stays.to(tl.int32), 0) - 1, T + r, mask=stays)
            tl.debug_barrier()  # the slots are read back by other threads than wrote them
        if MERGE:  # noqa: SIM102 - a constant: without it the rest is not compiled
            if (tl.load(table_ptr + 3 * row + 1) > 0) & (2 * part * BE < kept):
                _propose(
                    work, bits + image_pairs, receiver + image_pairs, index, part * BE, kept, T, read, gap,
                    DH, DP, BE, BR, VR, PRUNE,
                )  # fmt: skip


def constants(
    shape: Layout, width: int, prune: bool, merge_text: bool, merge: bool, whole: bool
) -> tuple[dict[str, Any], int]:
    """Compile-time arguments, and warps.

    Args:
        shape: Sizes of the decision.
        width: ``Dh``.
        prune: Whether the image is pruned.
        merge_text: Whether text is matched.
        merge: Whether the image is matched.
        whole: Whether text and image are one block.
    """
    deep, wide = power_of_two(width), power_of_two(shape.image)
    receivers = 32
    warps = 4 if wide <= 512 else 8 if wide <= 2048 else 16
    together = max(1, min(power_of_two(shape.rows, 1), 1024 * warps // wide)) if prune else 1
    values: dict[str, Any] = {
        "DH": width, "DP": deep, "VB": wide, "BE": shape.proposers, "BR": receivers,
        "TR": max(1, blocks(shape.text // 2, receivers)), "VR": max(1, blocks(shape.image // 2, receivers)),
        "RC": together, "RG": blocks(shape.rows, together) if prune else 0,
        "PRUNE": prune, "MERGE_TEXT": merge_text, "MERGE": merge, "WHOLE": whole,
    }  # fmt: skip
    return values, warps


def launch(
    lengths: Tensor, table: Tensor, work: Tensor, slots: Tensor, shape: Layout, width: int, text_slots: int,
    prune: bool, merge_text: bool, merge: bool, whole: bool,
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
        merge_text: Whether text is matched.
        merge: Whether the image is matched.
        whole: Whether text and image are one block.
    """
    values, warps = constants(shape, width, prune, merge_text, merge, whole)
    match_kernel[(shape.text_parts + shape.image_parts, lengths.shape[0])](
        lengths, table, work, slots, shape.text, shape.image, text_slots, shape.words, shape.scores_at, shape.pairs_at,
        shape.pairs, shape.image_pairs, shape.index_at, shape.text_parts, shape.rows,
        **values, num_warps=warps, num_stages=2 if width <= 64 else 1,
    )  # fmt: skip
