"""A reduction in four Triton launches instead of some forty calls: for CUDA, with the same decisions.

`usable` says whether these are for a tensor; `decide` and `apply` then take the place of the plain torch path. Nothing
here needs Triton to be imported. Letters as in `pumer.functional`; ``K`` slots after a reduction, ``Kt`` of text and
``Kv`` of the image, ``M`` keys of a layer's attention.

Differs from the plain path: sums are taken in another order, so that scores or similarities within the rounding of a
float32 sum of each other may fall differently. The result is deterministic: no atomics.
"""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from pumer.kernels import operators

GONE = 2**30
"""Code of a token that is pruned or padding."""

_INSTALLED = find_spec("triton") is not None
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_SUPPORTED: dict[int, bool] = {}
_enabled = os.environ.get("PUMER_KERNELS", "1") != "0"


def enable(flag: bool) -> None:
    """Use the kernels where they can be used, or never, in the whole process.

    Initially they are used, unless ``PUMER_KERNELS=0`` is set.

    Args:
        flag: Whether to use them.
    """
    global _enabled
    _enabled = flag


def enabled() -> bool:
    """Whether the kernels are switched on."""
    return _enabled


def usable(x: Tensor) -> bool:
    """Whether the kernels are for tensors like ``x``: of 16 or 32 bits, on a supported GPU, and not for an export."""
    if not (_enabled and _INSTALLED and x.is_cuda) or x.dtype not in _DTYPES:
        return False
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    return bool(_supported(x.get_device()))


@torch.compiler.assume_constant_result
def _supported(device: int) -> bool:
    """Whether a GPU is one that the kernels are written for: NVIDIA's since Ampere."""
    if device not in _SUPPORTED:
        _SUPPORTED[device] = torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
    return _SUPPORTED[device]


def attends(query: Tensor) -> bool:
    """Whether `attention` takes such queries and is the faster one: of 16 bits, in inference.

    Args:
        query: ``(B, H, Q, Dh)``.
    """
    batch, heads, _, width = query.shape
    if query.dtype == torch.float32 or torch.is_grad_enabled() or width not in (32, 64, 128) or batch * heads > 65_535:
        return False
    return usable(query)


def decide(
    query: Tensor | None,
    key: Tensor,
    text_key: Tensor | None,
    bias: Tensor | None,
    lengths: Tensor,
    table: Tensor,
    text_slots: int,
    image_slots: int,
    text_left: int,
    image_left: int,
    prune: bool,
    merge_text: bool,
    merge: bool,
    whole: bool = False,
) -> tuple[Tensor, Tensor]:
    """Decide one reduction: prune the image by what the text asks about, merge within each block (Algorithm 1).

    Args:
        query: ``(B, H, T, Dh)`` queries of the text, or None: nothing is pruned.
        key: ``(B, H, M, Dh)`` keys of the layer's attention; the last ``V`` are the image's.
        text_key: ``(B, H, T, Dh)`` keys by which text is compared, or None: text is not merged.
        bias: ``(B, 1, 1, M)`` attention bias of any float dtype, or None.
        lengths: ``(B, 2)`` int64, real tokens of text and image.
        table: ``(T + 1 + V + 1, 3)`` int32, contiguous: kept, merges, left for each length of the text, then of the
            image. With ``whole``: ``(T + V + 1, 3)``.
        text_slots: ``T``, may be 0.
        image_slots: ``V``.
        text_left: ``Kt``, slots of text in the result.
        image_left: ``Kv``, slots of the image in the result.
        prune: Whether the image is pruned.
        merge_text: Whether text is merged.
        merge: Whether the image is merged.
        whole: Whether text and image are one block without regard to modality (as in ToMe, 2023): padded words are
            skipped, output slots count from 0, nothing is pruned.

    Returns:
        ``code (B, T + V)`` int32: twice the output slot of each token, plus 1 if it is merged away into the one that
        stands there, ``GONE`` without one; ``following (B, 2)`` int64: real tokens of text and image afterwards.
    """
    code, following = operators.decide(
        query, key, text_key, bias, lengths, table, text_slots, image_slots, text_left, image_left, prune, merge_text,
        merge, whole,
    )  # fmt: skip
    return code, following


def apply(
    first: Tensor,
    second: Tensor | None,
    size: Tensor,
    weight: Tensor | None,
    code: Tensor,
    following: Tensor,
    text_left: int,
    image_left: int,
    proportional: bool,
    bias_dtype: torch.dtype,
) -> operators.Outputs:
    """Carry a decision out; differentiable in the states.

    Args:
        first: ``(B, T + V, D)`` states of one stream, or ``(B, T, D)`` of the text.
        second: ``(B, V, D)`` states of the image if it is a stream of its own, or None. Then no token is merged into
            one of the other stream.
        size: ``(B, N)`` float32, input tokens that each one holds.
        weight: ``(B, N)`` float32 above zero for real tokens, what means are weighted by; None: sizes.
        code: ``(B, N)`` int32 or int64, of `decide`.
        following: ``(B, 2)`` int64, of `decide`.
        text_left: ``Kt``.
        image_left: ``Kv``.
        proportional: Whether attention counts a token as often as it has parts.
        bias_dtype: Of the attention bias.

    Returns:
        ``y_first (B, K or Kt, D)`` and ``y_second (B, 0 or Kv, D)`` states, an unmerged token's bit for bit;
        ``new_size (B, K)`` float32; ``weight_sum (B, K)`` float32; ``bias_first`` and ``bias_second``,
        ``(B, 1, 1, .)`` attention bias of either stream, padded to a multiple of 16 columns. Free slots have states and
        sizes 0 and bias minus infinity.
    """
    outputs: operators.Outputs = operators.apply(
        first, second, size, weight, code, following, text_left, image_left, proportional, bias_dtype
    )
    return outputs


def compact(states: Tensor, mask: Tensor, image_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Move the real words of each sample to its front, in order; differentiable in the states.

    Args:
        states: ``(B, T, D)``.
        mask: ``(B, T)`` bool, where a real word is; ``T`` up to a few thousand.
        image_mask: ``(B, V)`` bool, where a real image token is, or None: they are not counted.

    Returns:
        ``(B, T, D)``: states bit for bit, those of padding last, in order too; ``(B, 2)`` int64: how many words and how
        many image tokens are real, 0 of the image without a mask of it.
    """
    compacted, lengths = operators.compact(states, mask, image_mask)
    return compacted, lengths


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention with a bias for each key, scaled by ``Dh ** -0.5``; without a gradient.

    Args:
        query: ``(B, H, Q, Dh)``, ``Dh`` a power of two from 16 to 128.
        key: ``(B, H, N, Dh)``; what stands behind a bias of minus infinity must be finite, as must values.
        value: ``(B, H, N, Dh)``.
        bias: ``(B, 1, 1, N)`` of any float dtype, minus infinity where a key is hidden, or None.

    Returns:
        ``(B, H, Q, Dh)``, 0 in a row that sees no key; in memory ``(B, Q, H, Dh)``, so that heads are joined for free.
    """
    y: Tensor = operators.attention(query, key, value, bias)
    return y


def quick_gelu(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 * x)`` in one pass, rounded as torch's three steps are; without a gradient.

    Args:
        x: Of any shape.
    """
    y: Tensor = operators.quick_gelu(x)
    return y


__all__ = ["GONE", "apply", "attends", "attention", "compact", "decide", "enable", "enabled", "quick_gelu", "usable"]
