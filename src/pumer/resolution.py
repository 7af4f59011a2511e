"""Fewer pixels for the vision encoder of a generative model, and so fewer tokens, by its processor's own settings."""

from collections.abc import Callable
from math import ceil, isqrt
from typing import Any, TypeVar

from pumer.utils.errors import InputError

Processor = TypeVar("Processor")


def fewer_pixels(processor: Processor, max_pixels: int, model: Any = None) -> Processor:
    """Have a processor hand at most so many pixels of an image to the vision encoder, in place; never more than before.

    All tiles of an image count, and the small copy of it that some families add. What is set is what the family reads:
    of Qwen-VL and GLM-V the pixels of ``size``, of Mistral 3 its ``longest_edge``, of SmolVLM and Idefics3 the same in
    steps of a tile, of InternVL ``max_patches``, of LLaVA-NeXT and LLaVA-OneVision ``image_grid_pinpoints``, in the
    model's config as well. ``save_pretrained`` keeps it. Videos are left as they are.

    Args:
        processor: Of a generative model.
        max_pixels: Of an image. One that is very long or high may keep more with Qwen-VL and GLM-V, whose processors
            leave a row of tokens.
        model: The model, whose config is changed as well; needed for LLaVA-NeXT and LLaVA-OneVision.

    Returns:
        The same processor.

    Raises:
        InputError: For a processor whose images all have one size, such as LLaVA-1.5's; if there is nothing as small;
            if the model is missing.

    Example:
        >>> processor = pumer.fewer_pixels(AutoProcessor.from_pretrained(name), 512 * 512)  # doctest: +SKIP
    """
    if isinstance(max_pixels, bool) or not isinstance(max_pixels, int) or max_pixels < 1:
        raise InputError(f"max_pixels is {max_pixels!r}; give an integer from 1 on")
    whole: Any = processor
    for cls in type(whole.image_processor).__mro__:
        if (rule := _RULES.get(cls.__name__.removesuffix("Pil").removesuffix("Fast"))) is not None:
            rule(whole, max_pixels, model)
            return processor
    raise InputError(
        f"max_pixels is {max_pixels}, but a {type(whole.image_processor).__name__} gives all images one size; it is "
        f"for {', '.join(_RULES)}"
    )


def _set_size(images: Any, **edges: int) -> None:
    images.size = type(images.size)(**{**dict(images.size), **edges})


def _check_least(most: int, least: int) -> None:
    if most < least:
        raise InputError(f"max_pixels is {most}, but this processor's smallest image has {least}; give at least those")


def _area(processor: Any, most: int, model: Any) -> None:
    """Qwen-VL: the edges of ``size`` are the least and the most pixels."""
    images = processor.image_processor
    _check_least(most, (images.patch_size * images.merge_size) ** 2)
    longest = min(images.size["longest_edge"], most)
    # an image with fewer than the least pixels is enlarged, and its sides are rounded up
    _set_size(images, longest_edge=longest, shortest_edge=min(images.size["shortest_edge"], longest // 4))


def _volume(processor: Any, most: int, model: Any) -> None:
    """GLM-V: the same, of an image that counts as several frames."""
    images = processor.image_processor
    _check_least(most, (images.patch_size * images.merge_size) ** 2)
    _area(processor, most * images.temporal_patch_size, model)


def _square(processor: Any, most: int, model: Any) -> None:
    """Mistral 3 and Pixtral: no side is longer."""
    images, step = processor.image_processor, processor.patch_size * processor.spatial_merge_size
    _check_least(most, step**2)
    _set_size(images, longest_edge=min(images.size["longest_edge"], isqrt(most) // step * step))


def _square_of_tiles(processor: Any, most: int, model: Any) -> None:
    """SmolVLM and Idefics3: the longer side is cut into tiles, and several tiles are followed by the whole image."""
    images = processor.image_processor
    tile, longest = images.max_image_size["longest_edge"], images.size["longest_edge"]
    _check_least(most, tile**2)
    if images.do_image_splitting:
        sides = [side for side in range(1, ceil(longest / tile) + 1) if _tiles(side**2) * tile**2 <= most]
        _set_size(images, longest_edge=min(longest, sides[-1] * tile))


def _number_of_tiles(processor: Any, most: int, model: Any) -> None:
    """InternVL: up to so many tiles, and of several also the whole image."""
    images = processor.image_processor
    tile = images.size["height"] * images.size["width"]
    _check_least(most, tile)
    images.max_patches = max(n for n in range(1, images.max_patches + 1) if _tiles(n) * tile <= most)
    images.min_patches = min(images.min_patches, images.max_patches)


def _tiles(parts: int) -> int:
    return parts + (parts > 1)


def _listed_sizes(processor: Any, most: int, model: Any) -> None:
    """LLaVA-NeXT and LLaVA-OneVision: one of the listed sizes, and the whole image as one tile."""
    images = processor.image_processor
    whole = (images.size.get("shortest_edge") or images.size["height"]) ** 2
    pixels = {(height, width): height * width + whole for height, width in images.image_grid_pinpoints}
    _check_least(most, min(pixels.values()))
    if model is None:
        raise InputError(
            f"model is missing, whose config lists the sizes of images too; give fewer_pixels(processor, {most}, model)"
        )
    fitting = [list(size) for size, n in pixels.items() if n <= most]
    images.image_grid_pinpoints = fitting
    model.config.image_grid_pinpoints = fitting


_RULES: dict[str, Callable[[Any, int, Any], None]] = {
    "Qwen2VLImageProcessor": _area,
    "Glm4vImageProcessor": _volume,
    "PixtralImageProcessor": _square,
    "SmolVLMImageProcessor": _square_of_tiles,
    "Idefics3ImageProcessor": _square_of_tiles,
    "GotOcr2ImageProcessor": _number_of_tiles,
    "LlavaNextImageProcessor": _listed_sizes,
    "LlavaOnevisionImageProcessor": _listed_sizes,
}
"""By transformers' class of the image processor; its variants with other endings do the same."""
