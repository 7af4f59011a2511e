"""Models on torch's meta device, which have shapes without memory or arithmetic."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pumer.patching import patch, reduction, unwrapped
from pumer.reducers import NoReduction


def on_meta(model: nn.Module) -> nn.Module:
    """A patched copy of a model on the meta device, in eval mode; no memory for weights is taken."""
    original = unwrapped(model)
    memo: dict[int, Any] = {id(tensor): _meta(tensor) for tensor in [*original.parameters(), *original.buffers()]}
    twin = copy.deepcopy(original, memo).eval()
    return twin if reduction(twin) is not None else patch(twin, NoReduction())


def _meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
