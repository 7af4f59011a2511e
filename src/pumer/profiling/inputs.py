"""Inputs of full length, for measuring and planning."""

from typing import Any

import torch
from torch import Tensor

from pumer.backbones import backbone_of
from pumer.utils.errors import InputError


def inputs_for(model: Any, size: int | tuple[int, int], text_length: int, batch: int = 1) -> dict[str, Tensor]:
    """Random pixels and words without padding, on the model's device and in its dtype; the same in every call.

    On the meta device the inputs have shapes alone. `size` are pixels: (height, width), or one number for both.
    """
    config, weight = model.config, next(model.parameters())
    height, width = (size, size) if isinstance(size, int) else size
    if not 1 <= text_length <= config.max_position_embeddings:
        raise InputError(f"text_length is {text_length}; the model takes 1 to {config.max_position_embeddings}")
    if min(height, width) < config.patch_size:
        raise InputError(f"image_size is {size}; give at least one patch of {config.patch_size} pixels each way")
    device = weight.device
    random: dict[str, Any] = {"device": device}
    if device.type != "meta":
        random["generator"] = torch.Generator(device).manual_seed(0)
    family = backbone_of(model)
    images = (config.num_images,) if family is not None and family.reads_pairs(model) else ()
    words = model.get_input_embeddings().num_embeddings
    return {
        "input_ids": torch.randint(0, words, (batch, text_length), **random),
        "attention_mask": torch.ones(batch, text_length, dtype=torch.int64, device=device),
        "pixel_values": torch.randn(batch, *images, config.num_channels, height, width, **random).to(weight.dtype),
    }
