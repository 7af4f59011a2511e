"""Every kind of file that an image folder of the web holds: read right, or refused with its reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pumer.errors import InputError
from pumer.tasks import images
from pumer.tasks.images import decode, read_image

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOURS = np.stack([RAMP, 255 - RAMP, RAMP.T], axis=-1)


def encoded(image, kind="PNG", **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def png_of_size(width, height):
    """A PNG whose header promises a size and whose data is nothing but zeros, compressed a thousandfold."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(10**6), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
KINDS = ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["cat.jpg", "cat.png", "cat"])
def test_the_content_decides_not_the_name(tmp_path, kind, name):
    data = encoded(NOISE, kind)
    (tmp_path / name).write_bytes(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(np.asarray(read_image(tmp_path / name)), expected)


def test_cmyk():
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        assert decode(encoded(red, kind)).getpixel((4, 4)) == (255, 0, 0)


def test_palette_with_and_without_transparency():
    palette = Image.fromarray(COLOURS).quantize(64)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(np.asarray(decode(encoded(palette))), expected)
    assert np.array_equal(np.asarray(decode(encoded(palette, transparency=bytes(range(64))))), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_higher_byte(kind):
    values = (RAMP.astype(np.uint16) << 8) + 77
    expected = np.repeat(RAMP[..., None], 3, axis=2)
    assert np.array_equal(np.asarray(decode(encoded(Image.fromarray(values), kind))), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA"])
def test_other_modes(mode):
    image = Image.fromarray(COLOURS).convert(mode)
    assert np.array_equal(np.asarray(decode(encoded(image))), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation, kind):
    turned = {
        1: COLOURS,
        2: COLOURS[:, ::-1],
        3: COLOURS[::-1, ::-1],
        4: COLOURS[::-1],
        5: COLOURS.transpose(1, 0, 2),
        6: np.rot90(COLOURS, -1),
        7: np.rot90(COLOURS, 2).transpose(1, 0, 2),
        8: np.rot90(COLOURS),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(COLOURS), kind, exif=exif, **settings)
    assert np.array_equal(np.asarray(decode(data)), turned[orientation])


def test_broken_exif_data_do_not_cost_the_picture():
    data = encoded(NOISE, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff broken")
    assert np.array_equal(np.asarray(decode(data)), np.asarray(decode(encoded(NOISE, "JPEG"))))


@pytest.mark.parametrize("size", [(1, 1), (20000, 20), (20, 20000)])
def test_odd_sizes(size):
    assert decode(encoded(Image.new("RGB", size, (1, 2, 3)))).size == size


@pytest.mark.parametrize("kind", KINDS)
@given(part=st.floats(0, 0.95))  # a file without its very last bytes may hold the whole picture
def test_cut_off_anywhere(kind, part):
    data = encoded(NOISE, kind)
    with pytest.raises(InputError, match=r"is empty|is no image|cannot be decoded"):
        decode(data[: int(part * len(data))])


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_damaged_bytes_give_a_picture_or_a_reason(kind, data):
    damaged = bytearray(encoded(NOISE, kind))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode(bytes(damaged)).mode == "RGB"
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("size", [(8193, 8192), (12000, 12000), (60000, 60000)])
def test_decompression_bombs_are_refused_unread(size, monkeypatch):
    monkeypatch.setattr(Image.Image, "convert", None)
    with pytest.raises(InputError, match="is too large"):
        decode(png_of_size(*size))


def test_the_largest_allowed_image_and_one_more_pixel(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    assert decode(encoded(Image.new("RGB", (10, 10)))).size == (10, 10)
    with pytest.raises(InputError, match=r"is too large \(101 x 1 pixels; at most 100\)"):
        decode(encoded(Image.new("RGB", (101, 1))))


def test_files_that_hold_no_image_are_named(tmp_path, monkeypatch):
    path = tmp_path / "cat.jpg"
    with pytest.raises(InputError, match=r"cat\.jpg does not exist"):
        read_image(path)
    contents = {b"": "is empty", b"<html>404</html>": "is no image", b"%!PS-Adobe-3.0 EPSF-3.0\n": "is no image"}
    for content, reason in contents.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"image .*cat\.jpg {reason}"):
            read_image(path)
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        read_image(tmp_path)
    monkeypatch.setattr(images, "MAX_BYTES", 3)
    with pytest.raises(InputError, match=r"is too large \(24 bytes; at most 3 are read\)"):
        read_image(path)
