"""Copies of models and inputs on torch's meta device: shapes without memory or arithmetic."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pumer.patching import patch, reduction, unwrapped
from pumer.reducers import NoReduction
from pumer.utils.errors import InputError


def on_meta(model: nn.Module) -> nn.Module:
    """A patched copy of a model on the meta device, in eval mode; no memory for weights is taken.

    Args:
        model: Any model that can be patched; it is left alone.
    """
    original = unwrapped(model)
    tensors = [*original.parameters(), *original.buffers()]
    memo: dict[int, Any] = {id(tensor): _meta(tensor) for tensor in tensors}
    twin = copy.deepcopy(original, memo).eval()
    if reduction(twin) is None:
        patch(twin, NoReduction())
    return twin


def _meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def meta_inputs(model: nn.Module, size: tuple[int, int], text_length: int, batch: int = 1) -> dict[str, Tensor]:
    """Inputs of full length on the meta device, as the model's processor would make them.

    Args:
        model: A model of a supported family.
        size: Height and width in pixels.
        text_length: Words.
        batch: Examples.

    Raises:
        InputError: If the model has fewer text positions, or cuts such an image into no patch.
    """
    config: Any = model.config
    if not 1 <= text_length <= config.max_position_embeddings:
        raise InputError(f"text_length is {text_length}; the model takes 1 to {config.max_position_embeddings}")
    if min(size) < config.patch_size:
        raise InputError(f"image_size is {size}; give at least one patch of {config.patch_size} pixels each way")
    images = (config.num_images,) if type(model).__name__.endswith("ForImagesAndTextClassification") else ()
    text = torch.ones(batch, text_length, dtype=torch.int64, device="meta")
    pixels = torch.empty(batch, *images, config.num_channels, *size, device="meta")
    return {"input_ids": text, "attention_mask": text, "pixel_values": pixels}
