"""Every kind of file that an image folder of the web holds: read right, or refused with its reason."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from pumer.data import images
from pumer.data.images import decode, read_image
from pumer.utils.errors import InputError

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


def test_broken_exif_data_do_not_cost_the_image():
    data = encoded(NOISE, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff broken")
    assert np.array_equal(np.asarray(decode(data)), np.asarray(decode(encoded(NOISE, "JPEG"))))


@pytest.mark.parametrize("size", [(1, 1), (20000, 20), (20, 20000)])
def test_odd_sizes(size):
    assert decode(encoded(Image.new("RGB", size, (1, 2, 3)))).size == size


@pytest.mark.parametrize("kind", KINDS)
@given(part=st.floats(0, 0.95))  # a file without its very last bytes may hold the whole image
def test_cut_off_anywhere(kind, part):
    data = encoded(NOISE, kind)
    with pytest.raises(InputError, match=r"is empty|is no image|cannot be decoded"):
        decode(data[: int(part * len(data))])


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_damaged_bytes_give_a_image_or_a_reason(kind, data):
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


def tiff(values, bits=16, sample_format=1, photometric=1, order="<"):
    """An uncompressed grey TIFF of one strip, made by hand: Pillow writes fewer kinds than it reads."""
    height, width = values.shape
    data = values if isinstance(values, bytes) else values.astype(values.dtype.newbyteorder(order)).tobytes()
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(int)
        data = b"".join((a << 12 | b).to_bytes(3, "big") for a, b in pairs.tolist())
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8 + 2 + 12 * 10 + 4, 277: 1}
    tags |= {278: height, 279: len(data), 339: sample_format}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(4) + data


GREY = np.repeat(RAMP[..., None], 3, axis=2)
WIDE = RAMP.astype(np.uint16) << 8 | 77
FLOATS = (RAMP / 255).astype(np.float32)


def shown(image):
    return np.asarray(image).tolist()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("values", "settings", "expected"),
    [
        (WIDE, {}, GREY),
        (WIDE, {"photometric": 0}, 255 - GREY),  # white is zero
        (RAMP.astype(np.uint16) << 4 | 7, {"bits": 12}, GREY),
        (WIDE.astype(np.int32), {"bits": 32, "sample_format": 2}, GREY),
        (RAMP.astype(np.int32), {"bits": 32, "sample_format": 2}, GREY),
        (FLOATS, {"bits": 32, "sample_format": 3}, GREY),
        (FLOATS, {"bits": 32, "sample_format": 3, "photometric": 0}, 255 - GREY),
        (RAMP.astype(np.float32), {"bits": 32, "sample_format": 3}, GREY),
    ],
)
def test_grey_of_every_depth_shows_its_range(values, settings, expected, order):
    data = tiff(values, **settings, order=order)
    try:
        assert shown(decode(data)) == shown(expected)
    except InputError as error:  # some kinds Pillow reads in one order of bytes alone
        assert order == ">", error
        assert "cannot be decoded" in str(error) or "is no image" in str(error)


@pytest.mark.parametrize(
    ("values", "settings", "named"),
    [
        (FLOATS * np.nan, {"sample_format": 3}, "nan"),
        (np.where(FLOATS > 0, FLOATS, np.float32(np.inf)), {"sample_format": 3}, "inf"),
        (FLOATS - 1, {"sample_format": 3}, "-1"),
        (FLOATS * 3000, {"sample_format": 3}, "0 to 2"),
        (WIDE.astype(np.int32) * -1, {"sample_format": 2}, "-"),
        (WIDE.astype(np.int32) << 8, {"sample_format": 2}, "65535"),
    ],
)
def test_values_that_show_nothing_known_are_refused(values, settings, named):
    with pytest.raises(InputError) as caught:
        decode(tiff(values, bits=32, **settings))
    assert named in str(caught.value)
    with pytest.raises(InputError) as caught:
        read_image(values)
    assert named in str(caught.value)


def test_signed_bytes_are_refused():
    with pytest.raises(InputError, match="signed 8-bit"):
        decode(tiff(RAMP.astype(np.int8), bits=8, sample_format=2))
    assert shown(decode(tiff(RAMP, bits=8))) == shown(GREY)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB"])
def test_pil_images_of_every_mode(mode):
    if mode == "LAB":
        to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        image = ImageCms.applyTransform(Image.fromarray(COLOURS), to_lab)
    elif mode == "RGBa":
        image = Image.fromarray(COLOURS).convert("RGBA").convert("RGBa")
    else:
        image = Image.fromarray(COLOURS).convert(mode)
    expected = Image.fromarray(COLOURS).convert("RGB" if mode in ("RGBa", "LAB") else mode).convert("RGB")
    apart = np.abs(np.asarray(read_image(image), dtype=int) - np.asarray(expected))
    assert apart.mean() < (6 if mode == "LAB" else 1e-9)  # 8 bits of LAB are coarse


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B", "I;16L"])
def test_pil_images_of_16_bits(mode):
    dtype = {"I": np.int32, "I;16B": ">u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (8, 8), WIDE.astype(dtype).tobytes())
    assert shown(read_image(image)) == shown(GREY)


def test_alpha_is_dropped():
    half = np.dstack([COLOURS, RAMP])
    for kind in ("PNG", "TIFF"):
        assert shown(decode(encoded(Image.fromarray(half), kind))) == shown(COLOURS)
    assert shown(read_image(Image.fromarray(half))) == shown(read_image(half)) == shown(COLOURS)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_image_counts(kind):
    frames = [Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)]
    settings = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **settings)
    assert shown(decode(data)) == shown(decode(encoded(frames[0], kind, **settings)))


@pytest.mark.parametrize(
    "array",
    [
        RAMP,
        RAMP[..., None],
        GREY,
        np.dstack([GREY, GREY[..., :1]]),
        WIDE,
        np.dstack([WIDE] * 3),
        RAMP.astype(np.int64),
        WIDE.astype(">u2"),
        FLOATS,
        FLOATS.astype(np.float64),
        np.dstack([FLOATS] * 3),
        np.dstack([FLOATS, FLOATS, FLOATS, FLOATS * 200]),  # of alpha nothing is asked
        RAMP.astype(np.float32),
        GREY[::-1][::-1],
        np.asfortranarray(GREY),
    ],
)
def test_arrays_are_images(array):
    assert shown(read_image(array)) == shown(GREY)


def test_booleans_are_black_and_white():
    assert shown(read_image(RAMP > 100)) == shown(np.where(GREY > 100, 255, 0))


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (COLOURS.transpose(2, 0, 1), "transpose(1, 2, 0)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "(2, 8, 8, 3)"),
        (np.zeros((8, 8, 5), np.uint8), "(8, 8, 5)"),
        (np.zeros(8, np.uint8), "(8,)"),
        (np.zeros((0, 8, 3), np.uint8), "empty"),
        (np.zeros((8, 8), complex), "complex128"),
        (np.zeros((8, 8), "U1"), "<U1"),
        (Image.new("RGB", (0, 3)), "empty"),
        (b"cat.jpg", "bytes"),
        (None, "NoneType"),
        (torch.zeros(3, 8, 8), "Tensor"),
        ("c\0t.jpg", "cannot be read"),
    ],
)
def test_what_is_no_image_is_named(image, named):
    with pytest.raises(InputError) as caught:
        read_image(image)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pil_image_is_read_as_its_file_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "cat.png").write_bytes(encoded(Image.fromarray(COLOURS), exif=exif))
    expected = shown(np.rot90(COLOURS, -1))
    for image in (tmp_path / "cat.png", str(tmp_path / "cat.png"), Image.open(tmp_path / "cat.png")):
        assert shown(read_image(image)) == expected
    (tmp_path / "cut.png").write_bytes(encoded(NOISE)[:-400])
    with pytest.raises(InputError, match="cannot be decoded"):
        read_image(Image.open(tmp_path / "cut.png"))


def test_large_arrays_are_refused(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 63)
    for image in (RAMP, Image.fromarray(COLOURS)):
        with pytest.raises(InputError, match=r"is too large \(8 x 8 pixels; at most 63\)"):
            read_image(image)
