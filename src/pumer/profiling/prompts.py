"""Prompts with an image for generative models, of any number of tokens, for measuring."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pumer.backbones import DECODERS
from pumer.backbones.grids import grids_of
from pumer.utils.errors import InputError

_FIRST, _LAST = 10, 100  # ids that are words in every vocabulary


def is_generative(model: Any) -> bool:
    """Whether a model, by its config, is of a family that generates."""
    return getattr(getattr(model, "config", None), "model_type", None) in DECODERS


def prompt_for(model: Any, text_tokens: int, image_tokens: int, batch: int = 1) -> dict[str, Tensor]:
    """Random words around random images, without padding, on the model's device and in its dtype.

    Args:
        model: A generative model.
        text_tokens: Text tokens of each prompt.
        image_tokens: Image tokens of each prompt: several images or tiles, where one has fewer.
        batch: Prompts.

    Returns:
        What the model's forward takes.

    Raises:
        InputError: For a family that cuts images into tiles by rules of its own, and a number of image tokens that no
            image gives.
    """
    kind, weight = model.config.model_type, next(model.parameters())
    if kind not in _IMAGES:
        raise InputError(f"prompts cannot be made for '{kind}' models; they can for {', '.join(_IMAGES)}")
    random = torch.Generator(weight.device).manual_seed(0)
    words = torch.randint(_FIRST, _LAST, (batch, text_tokens), generator=random, device=weight.device)
    image = words.new_full((batch, image_tokens), model.config.image_token_id)
    ids = torch.cat([words[:, : text_tokens // 2], image, words[:, text_tokens // 2 :]], dim=1)
    shape, others = _IMAGES[kind](model.config, image_tokens, batch)
    pixels = torch.randn(shape, generator=random, device=weight.device).to(weight.dtype)
    if "image_grid_thw" in others:
        others["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    others = {name: x.to(weight.device) for name, x in others.items()}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, **others}


def images_of(model: Any, inputs: Mapping[str, Tensor]) -> list[int]:
    """Image tokens of each image of one prompt of `prompt_for`."""
    image = inputs["input_ids"] == model.config.image_token_id
    number = grids_of(model, image, inputs).cells[0, :, 0]
    return number[number >= 0].bincount().tolist() or [int(image.sum())]


Shape = tuple[int, ...]


def prompt_size(config: Any, text_tokens: int | None, image_tokens: int | None) -> tuple[int, int]:
    """Text and image tokens of a prompt, as given or as usual.

    Args:
        config: Of the model.
        text_tokens: None for 64.
        image_tokens: None for those of one image, where each has as many, else as many as LLaVA-1.5 has.
    """
    whole = _IMAGES.get(config.model_type) is _whole_images
    usual = _patches(config) if whole else 576
    return text_tokens or 64, image_tokens or usual


def _patches(config: Any) -> int:
    return int((config.vision_config.image_size // config.vision_config.patch_size) ** 2)


def _whole_images(config: Any, tokens: int, batch: int) -> tuple[Shape, dict[str, Tensor]]:
    """As LLaVA: every image has one size."""
    side = config.vision_config.image_size
    count = _count(tokens, _patches(config))
    return (batch * count, 3, side, side), {}


def _tiles(config: Any, tokens: int, batch: int) -> tuple[Shape, dict[str, Tensor]]:
    """As Idefics3: tiles of one size, of which several patches become one token."""
    side = config.vision_config.image_size
    count = _count(tokens, _patches(config) // config.scale_factor**2)
    mask = torch.ones(batch, count, side, side, dtype=torch.int64)
    return (batch, count, 3, side, side), {"pixel_attention_mask": mask}


def _grid(config: Any, tokens: int, batch: int) -> tuple[Shape, dict[str, Tensor]]:
    """As Qwen-VL: one image in the grid that is closest to a square."""
    vision = config.vision_config
    rows = next(n for n in range(int(tokens**0.5), 0, -1) if tokens % n == 0)
    merged = vision.spatial_merge_size
    grid = torch.tensor([[1, rows * merged, tokens // rows * merged]] * batch)
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return (batch * tokens * merged**2, values), {"image_grid_thw": grid}


def _count(tokens: int, each: int) -> int:
    if tokens % each:
        raise InputError(f"image_tokens is {tokens}, but an image or tile of this model has {each}; give a multiple")
    return tokens // each


_IMAGES: dict[str, Callable[[Any, int, int], tuple[Shape, dict[str, Tensor]]]] = {
    "llava": _whole_images,
    "qwen2_vl": _grid,
    "qwen2_5_vl": _grid,
    "qwen3_vl": _grid,
    "glm4v": _grid,
    "smolvlm": _tiles,
    "idefics3": _tiles,
}
"""From config, image tokens and batch to the shape of the pixels, and what is needed beside them."""
