"""Images of another size than a model was made for: with fewer pixels, the plainest way to fewer tokens."""

from typing import Any

from torch import nn
from transformers.image_utils import SizeDict

from pumer.backbones import roots
from pumer.utils.errors import InputError
from pumer.utils.limits import check_tokens


def set_image_size(image_size: int | None, model: nn.Module, processor: Any = None) -> None:
    """Let a processor deliver, and a model read, images of another size; both keep it when they are saved.

    METER's table of positions is resized, bicubically, as is usual for vision transformers. ViLT resizes its own to
    every image, bilinearly, as its authors do, and stays as it is.

    Args:
        image_size: Pixels along a side; along the shorter one where the aspect ratio is kept. None changes nothing.
        model: Holds a model of a supported family; on any device, patched or not.
        processor: The model's, with an ``image_processor``; None where there is none.

    Raises:
        InputError: If it is no multiple of the patch size, or gives too many tokens.
    """
    if image_size is None:
        return
    patch: int = model.config.patch_size  # type: ignore[union-attr, assignment]
    if image_size < patch or image_size % patch:
        near = max(patch, round(image_size / patch) * patch)
        raise InputError(f"image_size {image_size} is not a multiple of the patch size {patch}; give {near}, or null")
    check_tokens(image_size, patch)
    for root, family in roots(model):
        if family.set_image_size is not None:
            family.set_image_size(root, image_size)
    if processor is not None:
        images = processor.image_processor
        sides = ("shortest_edge",) if "shortest_edge" in images.size else ("height", "width")
        images.size = SizeDict(**dict.fromkeys(sides, image_size))
