# ruff: noqa: ANN001, ANN201, ANN202 - what device code takes is described, not typed
"""First launch of a decision: what the text asks about, and the features by which tokens are compared.

Each head is a few programs: an online softmax of the text rows over all keys, summed over the rows, so that no matrix
of text by image is in memory. Further programs average a few tokens' keys over the heads and normalise them.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pumer.kernels.layout import Layout, blocks, power_of_two

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _logits(
    q, keys_ptr, bias_ptr, at, M, k_n, DH: tl.constexpr, DP: tl.constexpr, HAS_BIAS: tl.constexpr
):  # fmt: skip
    """Attention logits ``(BT, BN)`` of text rows to the keys ``at``, for `exp2`; minus infinity where no key is."""
    d = tl.arange(0, DP)
    inside = at < M
    k = tl.load(keys_ptr + at[:, None] * k_n + d[None, :], mask=inside[:, None] & (d < DH)[None, :], other=0.0)
    x = tl.dot(q, tl.trans(k), input_precision="ieee") * (DH**-0.5 * LOG2E)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + at, mask=inside, other=float("-inf")).to(tl.float32)
        inside = bias > float("-inf")  # whatever stands in a hidden slot, be it NaN, stays there
        x += (bias * LOG2E)[None, :]
    return tl.where(inside[None, :], x, float("-inf"))


@triton.jit
def cues_kernel(
    q_ptr, k_ptr, text_ptr, bias_ptr, lengths_ptr, work_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, t_b, t_h, t_n, bias_b,
    T, V, M, words, scores_at, head_programs, text_programs, splits,
    H: tl.constexpr, DH: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr, TC: tl.constexpr, BN: tl.constexpr,
    NB: tl.constexpr, BF: tl.constexpr, PRUNE: tl.constexpr, HAS_BIAS: tl.constexpr,
    MERGE_TEXT: tl.constexpr, MERGE: tl.constexpr,
):  # fmt: skip
    """Grid (programs, B): ``splits`` for each head and block of text rows, then blocks of words, then of patches.

    All programs of a row block go over all keys for the sum of the softmax; the scores of the key blocks are shared
    out among them, so ``splits`` changes no bit of the result.
    """
    b = tl.program_id(1).to(tl.int64)
    p = tl.program_id(0)
    work = work_ptr + b * words
    if p < head_programs:
        if PRUNE:
            row = p // splits  # of the partial scores: head and block of text rows
            part = p % splits
            d = tl.arange(0, DP)
            t = (row % TC) * BT + tl.arange(0, BT)
            asks = t < tl.load(lengths_ptr + 2 * b)
            where = (row // TC) * q_h + t[:, None] * q_n + d[None, :]
            q = tl.load(q_ptr + b * q_b + where, mask=(t < T)[:, None] & (d < DH)[None, :], other=0.0)
            q = tl.where(asks[:, None], q, 0.0)  # not by the mask: neither load waits for the other
            keys_ptr = k_ptr + b * k_b + (row // TC) * k_h
            bias_row = bias_ptr + b * bias_b
            scores = work + scores_at + row * V
            n = tl.arange(0, BN)
            skipped = M - V  # keys that are not the image's
            if NB == 1:
                x = _logits(q, keys_ptr, bias_row, n, M, k_n, DH, DP, HAS_BIAS)
                most = tl.max(x, 1)
                shares = tl.exp2(x - tl.where(most == float("-inf"), 0.0, most)[:, None])
                total = tl.sum(shares, 1)
                share = tl.where(asks & (total > 0), 1.0 / tl.where(total > 0, total, 1.0), 0.0)
                tl.store(scores + n - skipped, tl.sum(shares * share[:, None], 0), mask=(n >= skipped) & (n < M))
            else:
                most = tl.full((BT,), float("-inf"), tl.float32)
                total = tl.zeros((BT,), tl.float32)
                for i in range(0, NB):
                    x = _logits(q, keys_ptr, bias_row, i * BN + n, M, k_n, DH, DP, HAS_BIAS)
                    now = tl.maximum(most, tl.max(x, 1))
                    safe = tl.where(now == float("-inf"), 0.0, now)
                    total = total * tl.exp2(most - safe) + tl.sum(tl.exp2(x - safe[:, None]), 1)
                    most = now
                safe = tl.where(most == float("-inf"), 0.0, most)
                share = tl.where(asks & (total > 0), 1.0 / tl.where(total > 0, total, 1.0), 0.0)
                for i in range(0, NB):
                    if i % splits == part:
                        at = i * BN + n
                        x = _logits(q, keys_ptr, bias_row, at, M, k_n, DH, DP, HAS_BIAS)
                        summed = tl.sum(tl.exp2(x - safe[:, None]) * share[:, None], 0)
                        tl.store(scores + at - skipped, summed, mask=(at >= skipped) & (at < M))
    elif MERGE or MERGE_TEXT:
        p -= head_programs
        keys, step, apart = k_ptr + b * k_b + (M - V) * k_n, k_h, k_n
        n0, end, out = (p - text_programs) * BF, V, work + T * DH
        if p < text_programs:
            keys, step, apart = text_ptr + b * t_b, t_h, t_n
            n0, end, out = p * BF, T, work
        token, column = n0 + tl.arange(0, BF), tl.arange(0, DP)
        real = (token < end)[:, None] & (column < DH)[None, :]
        place = keys + token[:, None] * apart + column[None, :]
        mean = tl.zeros((BF, DP), tl.float32)
        for _ in tl.static_range(H):  # all loads are under way before the first sum
            mean += tl.load(place, mask=real, other=0.0).to(tl.float32)
            place += step
        mean = mean / H
        length = tl.maximum(tl.sqrt_rn(tl.sum(mean * mean, 1)), 1e-12)
        mean *= tl.div_rn(tl.full((BF,), 1.0, tl.float32), length)[:, None]
        tl.store(out + token[:, None] * DH + column[None, :], mean, mask=real)


FEATURE_BLOCK = 16
TEXT_BLOCK = 64


def text_rows(text: int) -> tuple[int, int]:
    """Text rows of one program, and how many such blocks there are."""
    size = min(TEXT_BLOCK, power_of_two(text))
    return size, blocks(text, size)


def constants(
    heads: int, width: int, text: int, keys: int, itemsize: int, prune: bool, has_bias: bool, merge_text: bool,
    merge: bool,
) -> tuple[dict[str, Any], int]:  # fmt: skip
    """Compile-time arguments, and warps; they depend on shapes only, never on the batch: nor do the bits of a result.

    Args:
        heads: ``H``.
        width: ``Dh``.
        text: ``T``.
        keys: ``M``.
        itemsize: Bytes of an element of the keys.
        prune: Whether scores are wanted.
        has_bias: Whether there is an attention bias.
        merge_text: Whether features of the words are wanted.
        merge: Whether features of the patches are wanted.
    """
    deep = power_of_two(width)
    row_block, row_blocks = text_rows(text)
    # 32 KB of 16-bit keys at once where that is all of them (ViLT at 384 pixels), else blocks that can be prefetched.
    if itemsize == 2 and power_of_two(keys) * deep <= 16384 and power_of_two(keys) <= 256:
        block = power_of_two(keys)
    else:
        elements = 8192 if itemsize == 2 else 2048  # in float32 there are no tensor cores: registers are what is short
        block = max(16, min(128, elements // deep, power_of_two(keys)))
    warps = 8 if prune and row_block * block >= 4096 else 4
    values: dict[str, Any] = {
        "H": heads, "DH": width, "DP": deep, "BT": row_block, "TC": row_blocks, "BN": block,
        "NB": blocks(keys, block), "BF": FEATURE_BLOCK, "PRUNE": prune,
        "HAS_BIAS": has_bias, "MERGE_TEXT": merge_text, "MERGE": merge,
    }  # fmt: skip
    return values, warps


def launch(
    query: Tensor | None,
    key: Tensor,
    text_key: Tensor | None,
    bias: Tensor | None,
    lengths: Tensor,
    work: Tensor,
    shape: Layout,
    merge: bool,
    busy: int,
) -> None:
    """Fill features and scores of the workspace ``work (B, words)`` float32.

    Args:
        query: ``(B, H, T, Dh)``, or None: no scores.
        key: ``(B, H, M, Dh)``; the last ``shape.image`` are the image's.
        text_key: ``(B, H, T, Dh)``, or None: no features of the words.
        bias: ``(B, 1, 1, M)`` or None.
        lengths: ``(B, 2)`` int64.
        work: ``(B, words)`` float32.
        shape: Where things are in it.
        merge: Whether features of the image are wanted.
        busy: Programs that fill the device.
    """
    batch, heads, keys, width = key.shape
    values, warps = constants(
        heads, width, shape.text, keys, key.element_size(), query is not None, bias is not None,
        text_key is not None, merge,
    )  # fmt: skip
    head_programs = shape.rows if query is not None else 0
    splits = max(1, min(values["NB"], busy // max(1, batch * head_programs)))
    text_programs = blocks(shape.text, FEATURE_BLOCK) if text_key is not None else 0
    image_programs = blocks(shape.image, FEATURE_BLOCK) if merge else 0
    head_programs *= splits
    rows, words = key if query is None else query, key if text_key is None else text_key
    cues_kernel[(head_programs + text_programs + image_programs, batch)](
        rows, key, words, key if bias is None else bias, lengths, work,
        *rows.stride()[:3], *key.stride()[:3], *words.stride()[:3], 0 if bias is None else bias.stride(0),
        shape.text, shape.image, keys, shape.words, shape.scores_at, head_programs, text_programs, splits,
        **values, num_warps=warps, num_stages=2 if key.dtype != torch.float32 else 1,
    )  # fmt: skip
