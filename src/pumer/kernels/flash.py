# ruff: noqa: ANN001, ANN201 - what device code takes is described, not typed
"""Attention with a bias for each key, forward only: an online softmax, so that no matrix of queries by keys is stored.

PyTorch's flash attention takes no bias, and its memory-efficient kernel is made for older tensor cores.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from pumer.kernels.layout import blocks, power_of_two

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def attention_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, y_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, bias_b, y_b, y_h, y_n, H, Q, N, scale,
    DH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of queries, B * H). Columns without a key have bias minus infinity, so no other mask is needed."""
    b, h = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    m, n, d = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, DH)
    q = tl.load(q_ptr + b * q_b + h * q_h + m[:, None] * q_n + d[None, :], mask=(m < Q)[:, None], other=0.0)
    keys = k_ptr + b * k_b + h * k_h + n[:, None] * k_n + d[None, :]
    values = v_ptr + b * v_b + h * v_h + n[:, None] * v_n + d[None, :]
    biases = bias_ptr + b * bias_b + n
    most = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    y = tl.zeros((BM, DH), tl.float32)
    for start in range(0, N, BN):
        inside = start + n < N
        k = tl.load(keys, mask=inside[:, None], other=0.0)
        x = tl.dot(q, tl.trans(k), input_precision="ieee")
        if HAS_BIAS:
            bias = tl.load(biases, mask=inside, other=float("-inf")).to(tl.float32) * LOG2E
            x = x * scale + bias[None, :]
            biases += BN
        else:
            x = tl.where(inside[None, :], x * scale, float("-inf"))
        now = tl.maximum(most, tl.max(x, 1))
        safe = tl.where(now == float("-inf"), 0.0, now)  # a row that has seen nothing yet
        p = tl.exp2(x - safe[:, None])
        shrink = tl.exp2(most - safe)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(values, mask=inside[:, None], other=0.0)
        y = tl.dot(p.to(v.dtype), v, y * shrink[:, None], input_precision="ieee")
        most = now
        keys += BN * k_n
        values += BN * v_n
    y = y * tl.where(total > 0, 1.0 / tl.where(total > 0, total, 1.0), 0.0)[:, None]
    place = y_ptr + b * y_b + h * y_h + m[:, None] * y_n + d[None, :]
    tl.store(place, y.to(y_ptr.dtype.element_ty), mask=(m < Q)[:, None])


@dataclass(frozen=True)
class Blocks:
    """How the work is cut.

    Attributes:
        queries: Queries of one program.
        keys: Keys of one step.
        warps: Warps of one program.
        stages: Steps under way at once.
    """

    queries: int
    keys: int
    warps: int
    stages: int


CONFIGURATIONS = (
    Blocks(64, 64, 4, 2),
    Blocks(64, 64, 4, 3),
    Blocks(64, 128, 4, 2),
    Blocks(128, 64, 8, 2),
    Blocks(128, 64, 8, 3),
    Blocks(128, 64, 4, 2),
    Blocks(128, 128, 8, 2),
    Blocks(64, 32, 4, 3),
)
"""What a micro benchmark compares."""


def default(queries: int, keys: int) -> Blocks:
    """The configuration for so many queries and keys: the fastest of those above on an H200, in bf16 and 64 wide heads.

    Args:
        queries: ``Q``.
        keys: ``N``.
    """
    if keys <= 64:
        return Blocks(64, 64, 4, 2)
    return Blocks(64, 64, 4, 3) if queries <= 64 else Blocks(64, 32, 4, 3)


def launch(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, y: Tensor, cut: Blocks | None = None
) -> None:
    """Fill the output of the operator ``pumer::attention``; see there for the arguments.

    Args:
        query: ``(B, H, Q, Dh)``.
        key: ``(B, H, N, Dh)``.
        value: ``(B, H, N, Dh)``.
        bias: ``(B, 1, 1, N)``, its last dimension contiguous, or None.
        y: ``(B, H, Q, Dh)``, any strides but the last.
        cut: How the work is cut, or None: by shape. Never by the batch, so nor are the bits of the result.
    """
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    cut = default(queries, keys) if cut is None else cut
    rows, columns = (min(n, power_of_two(m)) for n, m in ((cut.queries, queries), (cut.keys, keys)))
    attention_kernel[(blocks(queries, rows), batch * heads)](
        query, key, value, key if bias is None else bias, y, *query.stride()[:3], *key.stride()[:3],
        *value.stride()[:3], 0 if bias is None else bias.stride(0), *y.stride()[:3], heads, queries, keys,
        width**-0.5 * LOG2E.value, DH=width, BM=rows, BN=columns, HAS_BIAS=bias is not None, num_warps=cut.warps,
        num_stages=cut.stages,
    )  # fmt: skip
