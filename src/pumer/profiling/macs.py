"""Multiply-accumulates (MACs) of whatever runs: matrix products, convolutions and attention, and nothing else.

Element-wise work, softmax and normalisation are not counted. torch's own counter does not see the fused attention of
the CPU; this one counts it by its shapes, on every device and on the meta device.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

GIGA = 1e9


class MacCounter(TorchDispatchMode):
    """Counts, by section, the MACs of every matrix product, convolution and attention that runs inside it.

    Set `section` to the name that what runs now is counted under, as the forward proceeds.
    """

    def __init__(self, section: Hashable = "") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.section = section
        self.macs: Counter[Hashable] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        packet, kwargs = func.overloadpacket, kwargs or {}
        rule = _RULES.get(packet) or (_RULES[_ATTENTION] if "_scaled_dot_product" in str(func) else None)
        if rule is None and func._can_decompose():  # composite operators come whole in inference mode
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if rule is not None:
            self.macs[self.section] += rule(*args, **kwargs, out_val=result) // 2  # a MAC is two operations
        return result


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _matrix_vector(matrix: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * prod(matrix)


_ATTENTION = torch.ops.aten.scaled_dot_product_attention
_RULES = FlopCounterMode(
    display=False, custom_mapping={_ATTENTION: _attention, torch.ops.aten.mv: _matrix_vector}
).flop_registry
