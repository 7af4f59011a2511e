"""RandAugment of training images, without the operations that ViLT leaves out because texts name what they change."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from pumer.settings.common import LARGEST_MAGNITUDE as LARGEST
from pumer.settings.common import AugmentConfig

_TRANSLATION = 100 / 480
"""Largest shift, in shorter sides: 100 pixels of a COCO image."""


def _affine(image: Image.Image, horizontal: Sequence[float], vertical: Sequence[float]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, (*horizontal, *vertical))


def _solarize_add(image: Image.Image, addition: float) -> Image.Image:
    """Brighten the values below the middle."""
    return image.point([min(255, value + int(addition)) if value < 128 else value for value in range(256)] * 3)


Operation = Callable[[Image.Image, float], Image.Image]

OPERATIONS: Mapping[str, tuple[Operation, float, float, bool]] = {
    "autocontrast": (lambda image, _: ImageOps.autocontrast(image), 0, 1, False),
    "equalize": (lambda image, _: ImageOps.equalize(image), 0, 1, False),
    "rotate": (lambda image, degrees: image.rotate(degrees), 0, 30, True),
    "posterize": (lambda image, bits: ImageOps.posterize(image, max(1, int(bits))), 0, 4, False),
    "solarize": (lambda image, threshold: ImageOps.solarize(image, int(threshold)), 0, 256, False),
    "solarize_add": (_solarize_add, 0, 110, False),
    "color": (lambda image, factor: ImageEnhance.Color(image).enhance(factor), 0.1, 1.9, False),
    "contrast": (lambda image, factor: ImageEnhance.Contrast(image).enhance(factor), 0.1, 1.9, False),
    "brightness": (lambda image, factor: ImageEnhance.Brightness(image).enhance(factor), 0.1, 1.9, False),
    "sharpness": (lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor), 0.1, 1.9, False),
    "shear_x": (lambda image, slope: _affine(image, (1, slope, 0), (0, 1, 0)), 0, 0.3, True),
    "shear_y": (lambda image, slope: _affine(image, (1, 0, 0), (slope, 1, 0)), 0, 0.3, True),
    "translate_x": (lambda image, x: _affine(image, (1, 0, x * min(image.size)), (0, 1, 0)), 0, _TRANSLATION, True),
    "translate_y": (lambda image, y: _affine(image, (1, 0, 0), (0, 1, y * min(image.size))), 0, _TRANSLATION, True),
}
"""Name to the operation, its strength at magnitude 0 and at 30, and whether half of the time it goes the other way.

These are ViLT's: RandAugment's own without colour inversion, because texts name colours, and without cutout, which may
hide the object asked about. Nothing mirrors the image, because texts name left and right. What a shift or turn uncovers
is black. Posterising and solarising get weaker as the magnitude grows, as in ViLT's and METER's own training."""


def rand_augment(image: np.ndarray, config: AugmentConfig, key: Sequence[int]) -> np.ndarray:
    """An image (3, height, width) in 8 bits after a few random operations, which `key` (not negative) alone decides.

    Differs from ViLT's code: it works on the resized image, and shifts in proportion to its size, so that a magnitude
    means the same at any size.
    """
    random = np.random.default_rng(tuple(key))
    edited = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    for name in random.choice(list(OPERATIONS), config.operations):
        operation, weakest, strongest, mirrored = OPERATIONS[name]
        strength = weakest + (strongest - weakest) * config.magnitude / LARGEST
        sign = -1 if random.random() < 0.5 and mirrored else 1
        edited = operation(edited, sign * strength)
    return np.ascontiguousarray(np.asarray(edited).transpose(2, 0, 1))
