"""From image files to pixel tensors, through the model's own image processor."""

import io
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict

from pumer.errors import InputError
from pumer.tasks.storage import stored_image

Resize = Literal["square", "aspect"]
Edit = Callable[[int, np.ndarray], np.ndarray]
"""From the position of an image in its batch and the image (3, height, width) in 8 bits to another of that shape."""
GREY = 127
_LONGER = 1333 / 800
"""ViLT's image processor lets the longer edge be so much longer than the shorter one."""


MAX_PIXELS = 64 * 2**20
"""Larger images are refused: decoded they would take more than a quarter of a gigabyte, up to three times."""
MAX_BYTES = 64 * 2**20
"""Larger files are refused."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read, in Pillow's words; of moving pictures the first frame. Others run programs or fetch fonts."""


def read_image(path: Path) -> Image.Image:
    """Decode an image file to RGB, see `decode`.

    Raises:
        InputError: when there is no usable image; the message names the file and the reason.
    """
    try:
        return decode(image_bytes(path))
    except InputError as error:
        raise InputError(f"image {path} {error}; replace the file") from error


def image_bytes(path: Path) -> bytes:
    """The content of an image file, from disk or from a prepared folder (`pumer.tasks.storage`).

    Raises:
        InputError: the reason why there is none, such as "does not exist".
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"is too large ({size} bytes; at most {MAX_BYTES} are read)")
        return path.read_bytes()
    except FileNotFoundError:
        return stored_image(path)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from error


def decode(data: bytes) -> Image.Image:
    """Decode an image to RGB by its content, whatever its name says.

    The picture is turned the way its EXIF orientation asks; 16 bits per channel become 8 by dropping the lower ones;
    an alpha channel is dropped. The whole picture must be there.

    Args:
        data: content of the file.

    Raises:
        InputError: the reason why it is not usable: empty, no image, too large, truncated or otherwise broken.
    """
    if not data:
        raise InputError("is empty")
    Image.init()  # or Pillow may not know the formats yet; done once
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about oddities that are either harmless or end in an error below
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InputError(f"is too large ({image.width} x {image.height} pixels; at most {MAX_PIXELS})")
                return _to_rgb(_upright(image))
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"is no image of a known format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise InputError(f"is too large (a decompression bomb; at most {MAX_PIXELS} pixels)") from None
    except MemoryError:
        raise
    except Exception as error:  # a decoder raises whatever it stumbles over in broken data
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"cannot be decoded ({reason})") from error


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data in a sound picture
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow's own conversion cuts 16 bits at 255
        values = np.asarray(image).clip(0, 2**16 - 1) >> 8
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


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

    def __call__(self, paths: Sequence[Path], edit: Edit | None = None) -> dict[str, Tensor]:
        """Pixel tensors of B images.

        Args:
            paths: image files.
            edit: changes a resized image, given its position in `paths`; not what is kept of it.

        Returns:
            `pixel_values` (B, 3, height, width), float32, padded to the largest image, and for a model whose images
            differ in size `pixel_mask` (B, height, width), 1 on real pixels.

        Raises:
            InputError: when a file cannot be read; the message names it.
        """
        images = [self._grey() if self.blank else self._resized(path) for path in paths]
        if edit is not None and not self.blank:
            images = [edit(position, image) for position, image in enumerate(images)]
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
        resample = PILImageResampling(self.image_processor.resample)
        patch, longest = self.image_processor.size_divisor, int(self.edge * _LONGER)
        if min(image.size) * longest < max(image.size) * patch:  # so narrow that the processor would leave nothing
            longest -= longest % patch
            narrow = (longest, patch) if image.width > image.height else (patch, longest)
            return np.ascontiguousarray(np.asarray(image.resize(narrow, int(resample))).transpose(2, 0, 1))
        array = np.asarray(image).transpose(2, 0, 1)
        size = SizeDict(shortest_edge=self.edge)
        return np.asarray(self.image_processor.resize(array, size=size, resample=resample), dtype=np.uint8)
