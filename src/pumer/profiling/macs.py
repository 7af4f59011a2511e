"""Multiply-accumulates (MACs) of whatever runs: matrix products, convolutions and attention, and nothing else.

Element-wise work, softmax and normalisation are not counted. torch's own counter does not see the fused attention of
the CPU; this one counts it by its shapes, on every device and on the meta device.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class MacCounter(TorchDispatchMode):
    """Counts, by section, the MACs of every matrix product, convolution and attention that runs inside it.

    Set `section` to the name that what runs now is counted under, as the forward proceeds.
    """

    def __init__(self, section: Hashable = "") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.section = section
        self.macs: Counter[Hashable] = Counter()

    @property
    def total(self) -> int:
        """Over all sections."""
        return sum(self.macs.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule = _RULES.get(func.overloadpacket) or (_attention if "_scaled_dot_product" in str(func) else None)
        if rule is None and func._can_decompose():  # composite operators come whole in inference mode
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        result = func(*args, **(kwargs or {}))
        if rule is not None:
            self.macs[self.section] += rule(*args)
        return result


def _product(left: Tensor, right: Tensor, *_: Any) -> int:
    return left.numel() * right.shape[-1]


def _added_product(_: Tensor, left: Tensor, right: Tensor, *rest: Any) -> int:
    return _product(left, right)


def _convolution(x: Tensor, weight: Tensor, _: Any, stride: Any, padding: Any, dilation: Any, *rest: Any) -> int:
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    sizes = zip(x.shape[2:], padding, reach, stride, strict=True)
    places = [(size + 2 * pad - span) // step + 1 for size, pad, span, step in sizes]
    return x.shape[0] * weight.numel() * int(torch.Size(places).numel())


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> int:
    return query.numel() * key.shape[-2] + query.shape[:-1].numel() * value.shape[-2] * value.shape[-1]


_RULES: dict[Any, Callable[..., int]] = {
    torch.ops.aten.mm: _product,
    torch.ops.aten.bmm: _product,
    torch.ops.aten.mv: _product,
    torch.ops.aten.addmm: _added_product,
    torch.ops.aten.baddbmm: _added_product,
    torch.ops.aten.convolution: _convolution,
    torch.ops.aten.scaled_dot_product_attention: _attention,
}
