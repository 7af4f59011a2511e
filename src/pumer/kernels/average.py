# ruff: noqa: ANN001, ANN201 - what device code takes is described, not typed
"""Carry a decision out: states, sizes and attention bias of every output slot in one launch; and its gradient.

A program is one output slot. It scans the codes of its sample for the token that stands there and for those merged
into it, and adds them up in order: no atomics, no lists, each state is read once.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from pumer.kernels.device import GONE
from pumer.kernels.layout import blocks, power_of_two


@triton.jit
def apply_kernel(
    first_ptr, second_ptr, size_ptr, weight_ptr, code_ptr, following_ptr, y_first_ptr, y_second_ptr, new_size_ptr,
    weight_sum_ptr, bias_first_ptr, bias_second_ptr,
    x_b, x_n, z_b, z_n, split, N, D, Kt, first_slots, K, first_columns, second_columns,
    BN: tl.constexpr, NB: tl.constexpr, BD: tl.constexpr, TWO: tl.constexpr, WEIGHTED: tl.constexpr,
    PROPORTIONAL: tl.constexpr,
):  # fmt: skip
    """Grid (columns of both biases, B): output slots, and the columns that only align a bias.

    With ``TWO`` streams the first ``split`` tokens are rows of ``first_ptr``, the others of ``second_ptr``; so are the
    first ``first_slots`` output slots.
    """
    b = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0)
    d = tl.arange(0, BD)
    k = column
    slots = first_slots
    start = 0
    end = N
    x, step = first_ptr + b * x_b, x_n
    y = y_first_ptr + (b * first_slots + column) * D
    bias = bias_first_ptr + b * first_columns + column
    if TWO:
        end = split
        if column >= first_columns:
            k = column - first_columns + first_slots
            slots = K
            start = split
            end = N
            x, step = second_ptr + b * z_b, z_n
            y = y_second_ptr + (b * (K - first_slots) + k - first_slots) * D
            bias = bias_second_ptr + b * second_columns + column - first_columns
    if k < slots:
        codes, sizes, weights = code_ptr + b * N, size_ptr + b * N, weight_ptr + b * N
        left = tl.load(following_ptr + 2 * b + (k >= Kt).to(tl.int32))
        stands_at = tl.full((BN,), GONE, tl.int32)
        joins_at = tl.full((BN,), GONE, tl.int32)
        joined = tl.zeros((BN,), tl.int32)
        size = tl.zeros((BN,), tl.float32)
        weight = tl.zeros((BN,), tl.float32)
        for i in range(0, NB):
            n = i * BN + tl.arange(0, BN)
            here = (n >= start) & (n < end)
            code = tl.load(codes + n, mask=here, other=GONE)
            mine = (code == 2 * k) | (code == 2 * k + 1)
            stands_at = tl.where(code == 2 * k, n, stands_at)
            joins_at = tl.minimum(joins_at, tl.where(code == 2 * k + 1, n, GONE))
            joined += (code == 2 * k + 1).to(tl.int32)
            size += tl.where(mine, tl.load(sizes + n, mask=here, other=0.0), 0.0)
            if WEIGHTED:
                weight += tl.where(mine, tl.load(weights + n, mask=here, other=0.0), 0.0)
        own = tl.min(stands_at, 0)
        members = tl.sum(joined, 0)
        new_size = tl.sum(size, 0)
        weight_sum = tl.sum(weight, 0) if WEIGHTED else new_size
        if (tl.where(k >= Kt, k - Kt, k) < left) & (own < GONE):
            state = tl.load(x + (own - start).to(tl.int64) * step + d, mask=d < D, other=0.0)
            if members == 0:
                tl.store(y + d, state, mask=d < D)  # the very bits
            else:
                total = state.to(tl.float32) * tl.div_rn(tl.load(weights + own), weight_sum)
                member = tl.min(joins_at, 0)
                while members > 0:
                    state = tl.load(x + (member - start).to(tl.int64) * step + d, mask=d < D, other=0.0)
                    total += state.to(tl.float32) * tl.div_rn(tl.load(weights + member), weight_sum)
                    members -= 1
                    if members > 0:  # seldom: so the codes are read again instead of kept in registers
                        joins_at = tl.full((BN,), GONE, tl.int32)
                        for i in range(0, NB):
                            n = i * BN + tl.arange(0, BN)
                            code = tl.load(codes + n, mask=(n > member) & (n < end), other=GONE)
                            joins_at = tl.minimum(joins_at, tl.where(code == 2 * k + 1, n, GONE))
                        member = tl.min(joins_at, 0)
                tl.store(y + d, total.to(y_first_ptr.dtype.element_ty), mask=d < D)
            tl.store(new_size_ptr + b * K + k, new_size)
            tl.store(weight_sum_ptr + b * K + k, weight_sum)
            if PROPORTIONAL:
                tl.store(bias, tl.log(new_size).to(bias_first_ptr.dtype.element_ty))
            else:
                tl.store(bias, tl.full((), 0.0, bias_first_ptr.dtype.element_ty))
        else:
            tl.store(y + d, tl.zeros((BD,), y_first_ptr.dtype.element_ty), mask=d < D)
            tl.store(new_size_ptr + b * K + k, 0.0)
            tl.store(weight_sum_ptr + b * K + k, 0.0)
            tl.store(bias, tl.full((), float("-inf"), bias_first_ptr.dtype.element_ty))
    else:
        tl.store(bias, tl.full((), float("-inf"), bias_first_ptr.dtype.element_ty))


@triton.jit
def apply_backward_kernel(
    g_first_ptr, g_second_ptr, weight_ptr, weight_sum_ptr, code_ptr, out_first_ptr, out_second_ptr,
    x_b, x_n, z_b, z_n, split, N, D, first_slots, K,
    BD: tl.constexpr, TWO: tl.constexpr,
):  # fmt: skip
    """Grid (N, B): each token's gradient is its share of its slot's."""
    b = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0)
    d = tl.arange(0, BD)
    code = tl.load(code_ptr + b * N + n).to(tl.int32)
    weight = tl.load(weight_ptr + b * N + n)
    k = code // 2
    g, step = g_first_ptr + b * x_b, x_n
    row = k
    last = first_slots
    out = out_first_ptr + (b * split + n) * D
    if TWO:  # noqa: SIM102 - a constant: without it the rest is not compiled
        if n >= split:
            g, step = g_second_ptr + b * z_b, z_n
            row = k - first_slots
            last = K
            out = out_second_ptr + (b * (N - split) + n - split) * D
    if (row >= 0) & (k < last):
        share = tl.div_rn(weight, tl.load(weight_sum_ptr + b * K + k))
        x = tl.load(g + row.to(tl.int64) * step + d, mask=d < D, other=0.0).to(tl.float32) * share
        tl.store(out + d, x.to(out_first_ptr.dtype.element_ty), mask=d < D)
    else:
        tl.store(out + d, tl.zeros((BD,), out_first_ptr.dtype.element_ty), mask=d < D)


def constants(tokens: int, width: int) -> tuple[dict[str, Any], int]:
    """Compile-time arguments, and warps: one, so that nothing waits for a barrier, unless the rows are long.

    Args:
        tokens: ``N``.
        width: ``D``.
    """
    wide = power_of_two(width, 32)
    scanned = 256 if tokens <= 4096 else 2048
    return {"BN": scanned, "NB": blocks(tokens, scanned), "BD": wide}, min(8, max(1, scanned // 512, wide // 1024))


def launch(
    first: Tensor, second: Tensor | None, size: Tensor, weight: Tensor | None, code: Tensor, following: Tensor,
    outputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], text_left: int, proportional: bool,
) -> None:  # fmt: skip
    """Fill the outputs of the operator ``pumer::apply``; see there for the arguments."""
    y_first, y_second, new_size, weight_sum, bias_first, bias_second = outputs
    batch, tokens = size.shape
    width = first.shape[2]
    values, warps = constants(tokens, width)
    two = second is not None
    other = first if second is None else second
    columns, more = bias_first.shape[3], bias_second.shape[3]
    apply_kernel[(columns + more, batch)](
        first, other, size, size if weight is None else weight, code, following, y_first, y_second, new_size,
        weight_sum, bias_first, bias_second, *first.stride()[:2], *other.stride()[:2], first.shape[1], tokens, width,
        text_left, y_first.shape[1], new_size.shape[1], columns, more,
        **values, TWO=two, WEIGHTED=weight is not None, PROPORTIONAL=proportional, num_warps=warps,
    )  # fmt: skip


def launch_backward(
    grad_first: Tensor, grad_second: Tensor, weight: Tensor, weight_sum: Tensor, code: Tensor, out_first: Tensor,
    out_second: Tensor | None,
) -> None:  # fmt: skip
    """Fill the outputs of the operator ``pumer::apply_backward``; see there for the arguments."""
    batch, tokens, width = weight.shape[0], weight.shape[1], grad_first.shape[2]
    two = out_second is not None
    wide = power_of_two(width, 32)
    apply_backward_kernel[(tokens, batch)](
        grad_first, grad_second, weight, weight_sum, code, out_first, out_first if out_second is None else out_second,
        *grad_first.stride()[:2], *grad_second.stride()[:2], out_first.shape[1], tokens, width, grad_first.shape[1],
        weight_sum.shape[1], BD=wide, TWO=two, num_warps=min(8, max(1, wide // 1024)),
    )  # fmt: skip
