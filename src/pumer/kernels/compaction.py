# ruff: noqa: ANN001, ANN201 - what device code takes is described, not typed
"""Real words to the front, padding behind them, both in order; lengths counted; one launch, and one for the gradient.

A program is one row: it scans the mask of its sample for the row it copies. No sort, no list of indices, no host.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from pumer.kernels.layout import power_of_two


@triton.jit
def compact_kernel(
    x_ptr, mask_ptr, image_mask_ptr, y_ptr, lengths_ptr, x_b, x_n, mask_b, image_b, T, V, D,
    BT: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Grid (T, B): program ``k`` copies row ``k`` of the result; the first also counts, ``BV`` patches at once."""
    b = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0)
    d, n = tl.arange(0, BD), tl.arange(0, BT)
    real = tl.load(mask_ptr + b * mask_b + n, mask=n < T, other=0) != 0
    before = tl.cumsum(real.to(tl.int32), 0)
    count = tl.max(before, 0)
    rank = tl.where(real, before - 1, count + n - before)
    source = tl.sum(tl.where((rank == k) & (n < T), n, 0), 0).to(tl.int64)
    row = tl.load(x_ptr + b * x_b + source * x_n + d, mask=d < D, other=0.0)
    tl.store(y_ptr + (b * T + k) * D + d, row, mask=d < D)
    if k == 0:
        tl.store(lengths_ptr + 2 * b, count.to(tl.int64))
        seen = tl.zeros((BV,), tl.int32)
        if COUNT:
            start = 0
            while start < V:
                v = start + tl.arange(0, BV)
                seen += (tl.load(image_mask_ptr + b * image_b + v, mask=v < V, other=0) != 0).to(tl.int32)
                start += BV
        tl.store(lengths_ptr + 2 * b + 1, tl.sum(seen, 0).to(tl.int64))


@triton.jit
def compact_backward_kernel(
    g_ptr, mask_ptr, out_ptr, g_b, g_n, mask_b, T, D, BT: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """Grid (T, B): each row's gradient is that of the row it went to."""
    b = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0)
    d, n = tl.arange(0, BD), tl.arange(0, BT)
    real = tl.load(mask_ptr + b * mask_b + n, mask=n < T, other=0) != 0
    count = tl.sum(real.to(tl.int32), 0)
    before = tl.sum((real & (n < at)).to(tl.int32), 0)
    here = tl.sum((real & (n == at)).to(tl.int32), 0) > 0
    row = tl.where(here, before, count + at - before).to(tl.int64)
    x = tl.load(g_ptr + b * g_b + row * g_n + d, mask=d < D, other=0.0)
    tl.store(out_ptr + (b * T + at) * D + d, x, mask=d < D)


PATCHES = 256
"""Patches that are counted at once."""


def constants(tokens: int, width: int) -> tuple[dict[str, Any], int]:
    """Compile-time arguments of both kernels, and warps: one where it suffices, so that nothing waits for a barrier.

    Args:
        tokens: ``T``.
        width: ``D``.
    """
    wide = power_of_two(width, 32)
    long = power_of_two(tokens, 32)
    return {"BT": long, "BD": wide}, min(8, max(1, long // 256, wide // 1024))


def launch(
    states: Tensor, mask: Tensor, image_mask: Tensor | None, compacted: Tensor, lengths: Tensor
) -> None:  # fmt: skip
    """Fill the outputs of the operator ``pumer::compact``; see there for the arguments. Masks are ``uint8``."""
    batch, tokens, width = states.shape
    values, warps = constants(tokens, width)
    patches = mask if image_mask is None else image_mask
    compact_kernel[(max(1, tokens), batch)](
        states, mask, patches, compacted, lengths, *states.stride()[:2], mask.stride(0), patches.stride(0), tokens,
        patches.shape[1], width, **values, BV=PATCHES, COUNT=image_mask is not None, num_warps=warps,
    )  # fmt: skip


def launch_backward(gradient: Tensor, mask: Tensor, out: Tensor) -> None:
    """Fill the output of the operator ``pumer::compact_backward``; the mask is ``uint8``."""
    batch, tokens, width = gradient.shape
    values, warps = constants(tokens, width)
    compact_backward_kernel[(tokens, batch)](
        gradient, mask, out, *gradient.stride()[:2], mask.stride(0), tokens, width, **values, num_warps=warps
    )
