"""The operators of ``pumer::`` for eager mode, dynamo and autograd.

They are registered for CPU tensors too, where only Triton's interpreter runs them: that is how they are tested.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.library import define, impl, register_autograd, register_fake

from pumer.kernels.layout import blocks, layout, padded

DEVICES = ("cpu", "cuda")
FILLS = 264
"""Programs that fill a large GPU: two for each multiprocessor of an H100."""

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@cache
def _kernel(name: str) -> ModuleType:
    # Imported on first use: importing pumer must not need Triton.
    return import_module(f"pumer.kernels.{name}")


def _decide(
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
    whole: bool,
) -> tuple[Tensor, Tensor]:
    """See `pumer.kernels.decide`."""
    cues, match, select = _kernel("cues"), _kernel("match"), _kernel("select")
    batch, heads, _, width = key.shape
    if whole:
        text, image = 0, text_slots + image_slots
    else:
        text, image = text_slots, image_slots
    prune, merge_text = prune and query is not None, merge_text and text_key is not None
    rows = 0
    if prune and query is not None:
        query = _rows_together(query if query.dtype == key.dtype else query.to(key.dtype))
        rows = heads * cues.text_rows(text)[1]
    proposers = 16 if batch * blocks((image + 1) // 2, 32) < FILLS // 2 else 32
    shape = layout(text, image, width, rows, proposers, merge_text, merge, prune)
    work = key.new_empty(batch, shape.words, dtype=torch.float32)
    slots = work.view(torch.int32)
    code = lengths.new_empty(batch, text_slots + image_slots, dtype=torch.int32)
    lengths = lengths.contiguous()
    following = torch.empty_like(lengths)
    with _current(key):
        if prune or merge_text or merge:
            key = _rows_together(key)
            words = _rows_together(text_key.to(key.dtype)) if merge_text and text_key is not None else None
            hidden = _rows_together(bias) if prune and bias is not None else None
            cues.launch(query if prune else None, key, words, hidden, lengths, work, shape, merge, FILLS)
            match.launch(lengths, table, work, slots, shape, width, text_slots, prune, merge, whole)
        select.launch(
            lengths, table, slots, code, following, shape, text_slots, text_left, prune, merge_text, merge, whole
        )
    return code, following


def _decide_fake(
    query: Tensor | None,
    key: Tensor,
    text_key: Tensor | None,
    bias: Tensor | None,
    lengths: Tensor,
    table: Tensor,
    text_slots: int,
    image_slots: int,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    code = lengths.new_empty(lengths.shape[0], text_slots + image_slots, dtype=torch.int32)
    return code, torch.empty_like(lengths)


def _apply(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `pumer.kernels.apply`."""
    outputs = _outputs(first, second, text_left, image_left, bias_dtype)
    with _current(first):
        _kernel("average").launch(
            _rows_together(first),
            None if second is None else _rows_together(second),
            size.contiguous(),
            None if weight is None else weight.contiguous(),
            code.contiguous(),
            following.contiguous(),
            outputs,
            text_left,
            proportional,
        )
    return outputs


def _apply_fake(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _outputs(first, second, text_left, image_left, bias_dtype)


def _apply_backward(
    grad_first: Tensor, grad_second: Tensor, weight: Tensor, weight_sum: Tensor, code: Tensor, first: int, two: bool
) -> tuple[Tensor, Tensor]:
    """Gradient of the states.

    Args:
        grad_first: ``(B, K or Kt, D)`` gradient of ``y_first``.
        grad_second: ``(B, 0 or Kv, D)`` gradient of ``y_second``.
        weight: ``(B, N)`` float32, what the mean was weighted by.
        weight_sum: ``(B, K)`` float32, its sum over each slot.
        code: ``(B, N)`` int32.
        first: Tokens of the first stream.
        two: Whether there are two.

    Returns:
        ``(B, first, D)`` and ``(B, N - first, D)``, empty if there is one stream.
    """
    out_first, out_second = _gradients(grad_first, weight, first)
    with _current(grad_first):
        _kernel("average").launch_backward(
            _rows_together(grad_first),
            _rows_together(grad_second),
            weight.contiguous(),
            weight_sum.contiguous(),
            code.contiguous(),
            out_first,
            out_second if two else None,
        )
    return out_first, out_second


def _apply_backward_fake(
    grad_first: Tensor, grad_second: Tensor, weight: Tensor, weight_sum: Tensor, code: Tensor, first: int, two: bool
) -> tuple[Tensor, Tensor]:
    return _gradients(grad_first, weight, first)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    first, second, size, weight, code = inputs[:5]
    _, _, new_size, weight_sum, bias_first, bias_second = output
    ctx.mark_non_differentiable(new_size, weight_sum, bias_first, bias_second)
    ctx.save_for_backward(size if weight is None else weight, weight_sum, code)
    ctx.first, ctx.two = first.shape[1], second is not None


def _backward(ctx: Any, grad_first: Tensor, grad_second: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    weight, weight_sum, code = ctx.saved_tensors
    first, second = apply_backward(grad_first, grad_second, weight, weight_sum, code, ctx.first, ctx.two)
    return (first, second if ctx.two else None, *(None,) * 8)


def _compact(states: Tensor, mask: Tensor, image_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `pumer.kernels.compact`."""
    compacted, lengths = _compact_fake(states, mask, image_mask)
    with _current(states):
        _kernel("compaction").launch(
            _rows_together(states),
            _rows_together(mask).view(torch.uint8),
            None if image_mask is None else _rows_together(image_mask).view(torch.uint8),
            compacted,
            lengths,
        )
    return compacted, lengths


def _compact_fake(states: Tensor, mask: Tensor, image_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    return states.new_empty(states.shape), mask.new_empty(mask.shape[0], 2, dtype=torch.int64)


def _compact_backward(gradient: Tensor, mask: Tensor) -> Tensor:
    """Gradient of the states that ``pumer::compact`` took: ``(B, T, D)``.

    Args:
        gradient: ``(B, T, D)`` of what it returned.
        mask: ``(B, T)`` bool.
    """
    out = _compact_backward_fake(gradient, mask)
    with _current(gradient):
        _kernel("compaction").launch_backward(_rows_together(gradient), _rows_together(mask).view(torch.uint8), out)
    return out


def _compact_backward_fake(gradient: Tensor, mask: Tensor) -> Tensor:
    return gradient.new_empty(gradient.shape)


def _attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """See `pumer.kernels.attention`."""
    y = _attention_fake(query, key, value, bias)
    with _current(query):
        _kernel("flash").launch(
            _rows_together(query),
            _rows_together(key),
            _rows_together(value),
            None if bias is None else _rows_together(bias),
            y,
        )
    return y


def _attention_fake(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    batch, heads, queries, width = query.shape
    return query.new_empty(batch, queries, heads, width).transpose(1, 2)


def _quick_gelu(x: Tensor) -> Tensor:
    """See `pumer.kernels.quick_gelu`."""
    x = x.contiguous()
    y = torch.empty_like(x)
    with _current(x):
        _kernel("gelu").launch(x, y)
    return y


def _quick_gelu_fake(x: Tensor) -> Tensor:
    return torch.empty_like(x.contiguous())


def _remember_mask(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[1])


def _spread(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    return compact_backward(gradient, ctx.saved_tensors[0]), None, None


def _outputs(first: Tensor, second: Tensor | None, text_left: int, image_left: int, bias_dtype: torch.dtype) -> Outputs:
    batch, _, width = first.shape
    left = text_left + image_left
    slots, more = (left, 0) if second is None else (text_left, image_left)
    weight_sum = first.new_empty(batch, left, dtype=torch.float32)
    return (
        first.new_empty(batch, slots, width),
        first.new_empty(batch, more, width),
        torch.empty_like(weight_sum),
        weight_sum,
        first.new_empty(batch, 1, 1, padded(slots), dtype=bias_dtype),
        first.new_empty(batch, 1, 1, padded(more), dtype=bias_dtype),
    )


def _gradients(grad_first: Tensor, weight: Tensor, first: int) -> tuple[Tensor, Tensor]:
    batch, tokens = weight.shape
    width = grad_first.shape[2]
    return grad_first.new_empty(batch, first, width), grad_first.new_empty(batch, tokens - first, width)


def _current(x: Tensor) -> AbstractContextManager[Any]:
    """Makes the device of ``x`` the one that kernels are launched on."""
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.get_device())


def _rows_together(x: Tensor) -> Tensor:
    """``x`` with the elements of a row next to each other, as the kernels read them."""
    return x if x.stride(-1) == 1 else x.contiguous()


_SCHEMAS = {
    "decide": "(Tensor? query, Tensor key, Tensor? text_key, Tensor? bias, Tensor lengths, Tensor table, "
    "SymInt text_slots, SymInt image_slots, SymInt text_left, SymInt image_left, bool prune, bool merge_text, "
    "bool merge, bool whole) -> (Tensor code, Tensor following)",
    "apply": "(Tensor first, Tensor? second, Tensor size, Tensor? weight, Tensor code, Tensor following, "
    "SymInt text_left, SymInt image_left, bool proportional, ScalarType bias_dtype) -> "
    "(Tensor y_first, Tensor y_second, Tensor new_size, Tensor weight_sum, Tensor bias_first, Tensor bias_second)",
    "apply_backward": "(Tensor grad_first, Tensor grad_second, Tensor weight, Tensor weight_sum, Tensor code, "
    "SymInt first, bool two) -> (Tensor out_first, Tensor out_second)",
    "compact": "(Tensor states, Tensor mask, Tensor? image_mask) -> (Tensor compacted, Tensor lengths)",
    "attention": "(Tensor query, Tensor key, Tensor value, Tensor? bias) -> Tensor",
    "compact_backward": "(Tensor gradient, Tensor mask) -> Tensor",
    "quick_gelu": "(Tensor x) -> Tensor",
}
# Not through `custom_op`: its wrapper costs 10 us a call (torch 2.13), as much as launching a kernel.
for _name, _schema in _SCHEMAS.items():
    define(f"pumer::{_name}", _schema, tags=(torch.Tag.pt2_compliant_tag,))
impl("pumer::decide", DEVICES, _decide)
register_fake("pumer::decide", _decide_fake)
impl("pumer::apply", DEVICES, _apply)
register_fake("pumer::apply", _apply_fake)
impl("pumer::apply_backward", DEVICES, _apply_backward)
register_fake("pumer::apply_backward", _apply_backward_fake)
register_autograd("pumer::apply", _backward, setup_context=_remember)
impl("pumer::compact", DEVICES, _compact)
register_fake("pumer::compact", _compact_fake)
register_autograd("pumer::compact", _spread, setup_context=_remember_mask)
impl("pumer::compact_backward", DEVICES, _compact_backward)
register_fake("pumer::compact_backward", _compact_backward_fake)
impl("pumer::attention", DEVICES, _attention)
register_fake("pumer::attention", _attention_fake)
impl("pumer::quick_gelu", DEVICES, _quick_gelu)
register_fake("pumer::quick_gelu", _quick_gelu_fake)

decide = torch.ops.pumer.decide.default
apply = torch.ops.pumer.apply.default
apply_backward = torch.ops.pumer.apply_backward.default
compact = torch.ops.pumer.compact.default
compact_backward = torch.ops.pumer.compact_backward.default
attention = torch.ops.pumer.attention.default
quick_gelu = torch.ops.pumer.quick_gelu.default
