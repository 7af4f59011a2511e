"""From image files to images in RGB; without torch, for `pumer.ExportedModel`."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pumer.data.storage import storage_of
from pumer.utils.errors import InputError

ImageLike = str | Path | Image.Image | np.ndarray
"""A file name, a PIL image or an array; see `read_image`."""
MAX_PIXELS = 64 * 2**20
"""Larger images are refused: decoded they would take more than a quarter of a gigabyte, up to three times."""
MAX_BYTES = 64 * 2**20
"""Larger files are refused."""
GREY = 127
"""What `padded` fills with."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read, as Pillow names it. Other formats run programs or fetch fonts."""
_BITS, _WHITE, _SIGN = 258, 262, 339  # TIFF tags: bits per sample; 0 if zero is white; 2 if integers are signed


def read_image(image: ImageLike) -> Image.Image:
    """An image as 8-bit RGB, whatever it is given as.

    The image is turned the way its EXIF orientation asks. An alpha channel is dropped, as transformers' image
    processors do: what lies below is shown. Of several frames the first one counts. Depth and range become 8 bits:

    - 16 bits: the higher 8. 12 bits, in TIFF files: the higher 8.
    - 32-bit integers, and any other integers in arrays: 0 to 255 as they are, up to 65535 as 16 bits.
    - floats from 0 to 1: times 255; from 0 to 255: as they are.

    All other values, NaN among them, are refused, because their black and white are unknown.

    Args:
        image: a file name; a PIL image; or an array (height, width), (height, width, 1), (height, width, 3) or
            (height, width, 4), of which the last channel is alpha.

    Raises:
        InputError: when there is no usable image; the message names the file and the reason.
    """
    if isinstance(image, str | Path):
        name, remedy = f"image {image}", "give a file that can be read"
    elif isinstance(image, Image.Image | np.ndarray):
        name, remedy = f"the image given as {type(image).__name__}", "give another one"
    else:
        raise InputError(f"an image must be a file name, a PIL image or an array, not {type(image).__name__}")
    try:
        if isinstance(image, np.ndarray):
            return _from_array(image)
        if isinstance(image, Image.Image):
            return _usable(image)
        data = image_bytes(Path(image))
        remedy = "replace the file"
        return decode(data)
    except InputError as error:
        raise InputError(f"{name} {error}; {remedy}") from error


def padded(image: Image.Image, edge: int, resample: Image.Resampling) -> Image.Image:
    """An RGB image in the middle of a grey square of `edge` pixels along a side, its longer edge as long as that."""
    width, height = (max(1, round(edge * side / max(image.size))) for side in image.size)
    square = Image.new("RGB", (edge, edge), (GREY, GREY, GREY))
    square.paste(image.resize((width, height), resample), ((edge - width) // 2, (edge - height) // 2))
    return square


def image_bytes(path: Path) -> bytes:
    """The content of an image file, from disk or from a prepared folder; an error gives the reason alone."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"is too large ({size} bytes; at most {MAX_BYTES} are read)")
        return path.read_bytes()
    except FileNotFoundError:
        storage = storage_of(path)
        if storage is None:
            raise InputError("does not exist") from None
        return storage.image(path.relative_to(storage.root).as_posix())
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from error
    except ValueError as error:  # a null character in the name
        raise InputError(f"cannot be read ({error})") from error


def decode(data: bytes, most: int | None = None) -> Image.Image:
    """Decode the content of an image file to RGB, whatever its name; all of it must be there. See `read_image`.

    More than `most` pixels (by default `MAX_PIXELS`) are refused before they are decoded.
    """
    if not data:
        raise InputError("is empty")
    Image.init()  # or Pillow may not know the formats yet; done once
    with _reasons(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return _usable(image, most)


@contextmanager
def _reasons() -> Iterator[None]:
    """Turn whatever a decoder raises into an `InputError` with the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about oddities that are either harmless or end in an error below
            yield
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise InputError(f"is no image of a known format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise InputError(f"is too large (a decompression bomb; at most {MAX_PIXELS} pixels)") from None
    except Exception as error:  # a decoder raises whatever it stumbles over in broken data
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"cannot be decoded ({reason})") from error


def _usable(image: Image.Image, most: int | None = None) -> Image.Image:
    """A PIL image as upright RGB."""
    _check_size(image.width, image.height, most)
    with _reasons():
        about = getattr(image, "tag_v2", {})  # of a TIFF file; turning the image forgets them, and the format
        known_as_16_bits = image.mode.startswith("I;") or image.format in ("PNG", "PPM")
        bits = 12 if about.get(_BITS) == (12,) else 16 if known_as_16_bits else None
        if image.mode == "L" and about.get(_SIGN) == (2,):
            raise InputError("holds signed 8-bit integers, which Pillow reads as unsigned ones")
        image.load()
        with suppress(Exception):  # broken EXIF data in a sound image
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):  # Pillow's own conversion cuts them at 255
            values = _eight_bits(np.asarray(image), bits)
            image = Image.fromarray(255 - values if about.get(_WHITE) == 0 else values)
        if image.mode in ("La", "RGBa"):  # colours multiplied by alpha
            image = image.convert(image.mode.upper())
        return image.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    shape = array.shape
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        hint = ": use transpose(1, 2, 0)" if len(shape) == 3 and shape[0] in (1, 3, 4) else ""
        raise InputError(f"has shape {shape}, not (height, width) or (height, width, 1, 3 or 4){hint}")
    if array.dtype.kind not in "biuf":
        raise InputError(f"holds {array.dtype}, not integers or floats")
    _check_size(shape[1], shape[0])
    values = array if len(shape) == 2 else array[..., 0] if shape[2] == 1 else array[..., :3]
    if array.dtype == bool:
        values = values.astype(np.uint8) * 255
    bits = {np.dtype(np.uint8): 8, np.dtype(np.uint16): 16}.get(values.dtype.newbyteorder("="))
    return Image.fromarray(_eight_bits(values, bits)).convert("RGB")


def _check_size(width: int, height: int, most: int | None = None) -> None:
    if not width * height:
        raise InputError(f"is empty ({width} x {height} pixels)")
    most = MAX_PIXELS if most is None else most
    if width * height > most:
        raise InputError(f"is too large ({width} x {height} pixels; at most {most})")


def _eight_bits(values: np.ndarray, bits: int | None) -> np.ndarray:
    """Values from black to white as `uint8`, see `read_image`; white has `bits` bits, None takes it from the range."""
    low, high = float(values.min()), float(values.max())  # NaN if any value is
    floats = values.dtype.kind == "f"
    if not (low >= 0 and high <= (255 if floats else 65535)):
        raise InputError(f"holds values from {low:g} to {high:g}, not {'0 to 1' if floats else '0 to 255 or to 65535'}")
    if floats:
        return np.asarray(np.rint(values * (255 if high <= 1 else 1)), dtype=np.uint8)
    bits = bits or (8 if high <= 255 else 16)
    return np.ascontiguousarray(values >> (bits - 8), dtype=np.uint8)
