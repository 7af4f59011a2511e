"""From image files to pixel tensors, through the model's own image processor."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict

from pumer.data.images import GREY, ImageLike, padded, read_image
from pumer.settings.common import Resize
from pumer.utils.errors import InputError

logger = logging.getLogger(__name__)

Edit = Callable[[int, np.ndarray], np.ndarray]
"""From the position of an image in its batch and the image (3, height, width) in 8 bits to another of that shape."""
_SQUEEZED = 3
"""Images so many times longer along one side than along the other are mentioned."""
_DRAWN = 1024
"""Most pixels along a side of an image that is drawn with its grey."""
_LONGER = 1333 / 800  # how much longer ViLT's image processor lets the longer edge be than the shorter one


class Pixels:
    """Turns images into the batch that the model's image processor makes.

    Resized images are cached (8 bits per channel, least recently used), because several questions share one image and
    every epoch reads it again. Scaling, normalising and padding is the processor's work.
    """

    def __init__(
        self, image_processor: Any, resize: Resize = "square", blank: bool = False, cache_bytes: int = 256 * 2**20
    ) -> None:
        """Prepare for one image processor.

        Args:
            image_processor: ViLT's, which resizes by the shortest edge, or METER's, which makes squares.
            resize: "square" makes every image (edge x edge), as the released code does: bilinearly for ViLT,
                bicubically for METER; "pad" does so too, but keeps the aspect ratio and fills the rest with grey;
                "aspect" keeps the aspect ratio without filling, as the original ViLT does.
            blank: replace every image by the same grey square; for a text-only model.
            cache_bytes: memory for resized images, per process.
        """
        if resize not in get_args(Resize):
            raise InputError(f"resize must be one of {', '.join(get_args(Resize))}, not '{resize}'")
        self.image_processor = image_processor
        square_only = "shortest_edge" not in image_processor.size
        if square_only and resize == "aspect":
            raise InputError("resize is 'aspect', but this model takes square images only; give 'pad' or 'square'")
        self.edge: int = image_processor.size["height" if square_only else "shortest_edge"]
        self.square = Image.Resampling.BICUBIC if square_only else Image.Resampling.BILINEAR
        self.resize = resize
        self.blank = blank
        self._cache_bytes = cache_bytes
        self._cached_bytes = 0
        self._warned = False
        self._cache: OrderedDict[Path, np.ndarray] = OrderedDict()

    def __call__(self, given: Sequence[ImageLike], edit: Edit | None = None) -> dict[str, Tensor]:
        """Pixel tensors of B images; those given as `Path` are cached.

        `edit` changes a resized image, given its position in `given`; the cache keeps the original.

        Returns:
            `pixel_values` (B, 3, height, width), float32, padded to the largest image, and for a model whose images
            differ in size `pixel_mask` (B, height, width), 1 on real pixels.
        """
        grey = np.full((3, self.edge, self.edge), GREY, dtype=np.uint8)
        images = [grey if self.blank else self._cached(image) for image in given]
        if edit is not None and not self.blank:
            images = [edit(position, image) for position, image in enumerate(images)]
        batch: BatchFeature = self.image_processor(
            images, do_resize=False, input_data_format="channels_first", return_tensors="pt"
        )
        return {name: batch[name] for name in ("pixel_values", "pixel_mask") if name in batch}

    def _cached(self, given: ImageLike) -> np.ndarray:
        """The resized image (3, height, width) in 8 bits, from the cache or from disk."""
        if not isinstance(given, Path):
            return self.resized(read_image(given))
        if given in self._cache:
            self._cache.move_to_end(given)
            return self._cache[given]
        image = self.resized(read_image(given))
        self._cache[given] = image
        self._cached_bytes += image.nbytes
        while self._cached_bytes > self._cache_bytes:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return image

    def smaller(self, image: Image.Image) -> Image.Image:
        """An RGB image in the size the model sees, if that is a square; else as it is. For images that have to wait.

        `resized` makes the same of both.
        """
        if self.resize == "pad":
            return padded(image, self.edge, self.square)
        if self.resize == "square":
            self._warn_of_squeezing(image)
            return image.resize((self.edge, self.edge), self.square)
        return image

    def _warn_of_squeezing(self, image: Image.Image) -> None:
        """Log, once, that an image is squeezed much."""
        if not self._warned and max(image.size) >= _SQUEEZED * min(image.size):
            self._warned = True
            shape = f"{image.width} x {image.height} pixels"
            logger.warning("an image of %s is squeezed into a square; resize=pad keeps its shape", shape)

    def framed(self, image: Image.Image) -> Image.Image:
        """An RGB image with the grey that `resize` "pad" adds: what the model's patches lie over. For drawings."""
        return padded(image, min(max(image.size), _DRAWN), self.square) if self.resize == "pad" else image

    def resized(self, image: Image.Image) -> np.ndarray:
        """An RGB image as 8-bit array (3, height, width) in the size the model sees."""
        if self.resize != "aspect":
            return _channels_first(self.smaller(image))
        resample = PILImageResampling(self.image_processor.resample)
        patch, longest = self.image_processor.size_divisor, int(self.edge * _LONGER)
        if min(image.size) * longest < max(image.size) * patch:  # so narrow that the processor would leave nothing
            longest -= longest % patch
            narrow = (longest, patch) if image.width > image.height else (patch, longest)
            return _channels_first(image.resize(narrow, int(resample)))
        size = SizeDict(shortest_edge=self.edge)
        resized = self.image_processor.resize(np.asarray(image).transpose(2, 0, 1), size=size, resample=resample)
        return np.asarray(resized, dtype=np.uint8)


def _channels_first(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
