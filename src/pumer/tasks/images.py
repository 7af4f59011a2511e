"""From image files to pixel tensors, through the model's own image processor."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict

from pumer.errors import InputError

Resize = Literal["square", "aspect"]
GREY = 127


def read_image(path: Path) -> Image.Image:
    """Decode an image file to RGB.

    Raises:
        InputError: when the file is missing, truncated or no image; the message names it.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise InputError(f"image {path} does not exist") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"image {path} cannot be decoded ({error}); replace the file") from error


class Pixels:
    """Turns image files into the batch that the model's image processor makes.

    Resized images are kept (8 bits per channel, the least recently used ones dropped), for several questions
    share one image and every epoch shows it again. Scaling, normalising and padding is the processor's work.

    Example:
        >>> pixels = Pixels(processor.image_processor, resize="square")             # doctest: +SKIP
        >>> pixels([Path("cat.jpg"), Path("dog.jpg")])["pixel_values"].shape       # doctest: +SKIP
        torch.Size([2, 3, 384, 384])
    """

    def __init__(
        self,
        image_processor: Any,
        resize: Resize = "square",
        blank: bool = False,
        cache_bytes: int = 256 * 2**20,
    ) -> None:
        """Prepare for one image processor.

        Args:
            image_processor: a transformers image processor: ViLT's, which resizes by the shortest edge, or METER's,
                which makes squares.
            resize: "square" makes every image (edge x edge), as the released code does: bilinearly for ViLT,
                bicubically for METER; "aspect" keeps the aspect ratio, as the original ViLT and its image processor do.
            blank: replace every image by the same grey square; for a text-only model.
            cache_bytes: memory for resized images, per process.

        Raises:
            InputError: for another `resize`, or "aspect" for a model that takes squares only.
        """
        if resize not in get_args(Resize):
            raise InputError(f"resize must be one of {', '.join(get_args(Resize))}, not '{resize}'")
        self.image_processor = image_processor
        square_only = "shortest_edge" not in image_processor.size
        if square_only and resize == "aspect":
            raise InputError("resize is 'aspect', but this model takes square images only; leave it at 'square'")
        self.edge: int = image_processor.size["height" if square_only else "shortest_edge"]
        self._square = Image.Resampling.BICUBIC if square_only else Image.Resampling.BILINEAR
        self.resize = resize
        self.blank = blank
        self._cache_bytes = cache_bytes
        self._cached_bytes = 0
        self._cache: OrderedDict[Path, np.ndarray] = OrderedDict()

    def __call__(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Pixel tensors of B images.

        Returns:
            `pixel_values` (B, 3, height, width), float32, padded to the largest image, and for a model whose images
            differ in size `pixel_mask` (B, height, width), 1 on real pixels.

        Raises:
            InputError: when a file cannot be read; the message names it.
        """
        images = [self._grey() if self.blank else self._resized(path) for path in paths]
        batch: BatchFeature = self.image_processor(
            images, do_resize=False, input_data_format="channels_first", return_tensors="pt"
        )
        return {name: batch[name] for name in ("pixel_values", "pixel_mask") if name in batch}

    def _grey(self) -> np.ndarray:
        return np.full((3, self.edge, self.edge), GREY, dtype=np.uint8)

    def _resized(self, path: Path) -> np.ndarray:
        """The resized image (3, height, width) in 8 bits, from the cache or from disk."""
        if path in self._cache:
            self._cache.move_to_end(path)
            return self._cache[path]
        image = self.resized(read_image(path))
        self._cache[path] = image
        self._cached_bytes += image.nbytes
        while self._cached_bytes > self._cache_bytes:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return image

    def resized(self, image: Image.Image) -> np.ndarray:
        """An RGB image as 8-bit array (3, height, width) in the size the model sees."""
        if self.resize == "square":
            square = image.resize((self.edge, self.edge), self._square)
            return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))
        array = np.asarray(image).transpose(2, 0, 1)
        resample = PILImageResampling(self.image_processor.resample)
        size = SizeDict(shortest_edge=self.edge)
        return np.asarray(self.image_processor.resize(array, size=size, resample=resample), dtype=np.uint8)
