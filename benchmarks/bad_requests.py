"""Requests that `pumer serve` must refuse, each with a status from 400 to 499 and one line."""

import io
import json
import random
import struct
import zlib
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Bad:
    """A request.

    Attributes:
        kind: What is wrong with it.
        path: With the query.
        content: The body; a list is sent piece by piece, without its length.
        method: Of HTTP.
        headers: Beside the usual ones.
    """

    kind: str
    path: str
    content: bytes | list[bytes] = b""
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)


def bad_requests(model: str, count: int, largest: int, pixels: int, seed: int = 0) -> list[Bad]:
    """So many of them, of every kind in turn, for a model by its name.

    Args:
        model: Name in addresses.
        count: How many.
        largest: Bytes that a body may have.
        pixels: That an image may have.
        seed: Of what is random in them.
    """
    draw = random.Random(seed)
    made: list[tuple[str, Any]] = [*_BODIES.items(), *_JSON.items(), *_ADDRESSES.items()]
    found = []
    for number in range(count):
        kind, make = made[number % len(made)]
        if kind in _BODIES:
            found.append(Bad(kind, "/answer?question=what+is+it", make(draw, pixels, largest)))
        elif kind in _JSON:
            body = make(draw, pixels)
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            found.append(Bad(kind, f"/v2/models/{model}/infer", content))
        else:
            method, path = make(model)
            found.append(Bad(kind, path, _image(draw) if method == "POST" else b"", method))
    return found


def infer(images: list[str], questions: list[str], **others: Any) -> dict[str, Any]:
    """A request of KServe's protocol, good if its images are."""
    tensors = [
        {"name": name, "shape": [len(data)], "datatype": "BYTES", "data": data}
        for name, data in (("image", images), ("question", questions))
    ]
    return {"inputs": tensors, **others}


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image as the content of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that claims to be of any size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    zeros = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zeros) + chunk(b"IEND", b"")


def _image(draw: random.Random, kind: str = "PNG") -> bytes:
    size = (draw.randrange(40, 80), draw.randrange(40, 80), 3)
    pixels = np.random.default_rng(draw.randrange(2**32)).integers(0, 256, size, dtype=np.uint8)
    return encoded(Image.fromarray(pixels), kind)


def _base64(draw: random.Random) -> str:
    return b64encode(_image(draw)).decode()


def _cut(draw: random.Random, kind: str) -> bytes:
    whole = _image(draw, kind)
    return whole[: draw.randrange(8, len(whole) // 2)]


def _scratched(draw: random.Random) -> bytes:
    content = bytearray(_image(draw))
    content[draw.randrange(60, len(content) - 30)] ^= 0xFF  # inside the compressed pixels
    return bytes(content)


def _bomb(draw: random.Random, pixels: int) -> bytes:
    """All white: small as a file, and just larger than is taken."""
    width = draw.randrange(4000, 5000)
    return encoded(Image.new("1", (width, pixels // width + 1), 1), "PNG")


_BODIES: dict[str, Callable[[random.Random, int, int], bytes | list[bytes]]] = {
    "empty body": lambda draw, pixels, largest: b"",
    "random bytes": lambda draw, pixels, largest: draw.randbytes(draw.randrange(1, 5000)),
    "a text": lambda draw, pixels, largest: b"hello, what is on this image?",
    "a web page": lambda draw, pixels, largest: b"<!doctype html><html><img src='cat.jpg'></html>",
    "SVG": lambda draw, pixels, largest: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "PDF": lambda draw, pixels, largest: b"%PDF-1.7\n%\xe2\xe3\n1 0 obj<<>>endobj",
    "EPS": lambda draw, pixels, largest: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "truncated PNG": lambda draw, pixels, largest: _cut(draw, "PNG"),
    "truncated JPEG": lambda draw, pixels, largest: _cut(draw, "JPEG"),
    "truncated WebP": lambda draw, pixels, largest: _cut(draw, "WEBP"),
    "scratched PNG": lambda draw, pixels, largest: _scratched(draw),
    "PNG that claims 900 million pixels": lambda draw, pixels, largest: png_header(30_000, 30_000),
    "PNG that claims 170 million pixels": lambda draw, pixels, largest: png_header(13_000, 13_000),
    "PNG without a pixel": lambda draw, pixels, largest: png_header(0, 9),
    "GIF that claims four billion pixels": lambda draw, pixels, largest: b"GIF89a\xff\xff\xff\xff\x00\x00\x00,",
    "bomb: a white PNG": lambda draw, pixels, largest: _bomb(draw, pixels),
    "body that is too large": lambda draw, pixels, largest: bytes(largest + draw.randrange(1, 1000)),
    "body that is too large, of unknown length": lambda draw, pixels, largest: [bytes(2**16)] * (largest // 2**16 + 2),
}
_JSON: dict[str, Callable[[random.Random, int], Any]] = {
    "not JSON": lambda draw, pixels: b"what is it?",
    "truncated JSON": lambda draw, pixels: json.dumps(infer([_base64(draw)], ["what?"])).encode()[:-9],
    "deeply nested JSON": lambda draw, pixels: b'{"inputs":' + b"[" * 100_000,
    "JSON that is not UTF-8": lambda draw, pixels: b'{"inputs": "\xff\xfe"}',
    "half of a surrogate pair": lambda draw, pixels: b'{"inputs": [], "id": "\\ud800"}',
    "a number of 100,000 digits": lambda draw, pixels: b'{"inputs": ' + b"9" * 100_000 + b"}",
    "NaN": lambda draw, pixels: b'{"inputs": NaN}',
    "a list": lambda draw, pixels: [1, 2],
    "no inputs": lambda draw, pixels: {"inputs": []},
    "an input twice": lambda draw, pixels: {"inputs": infer([_base64(draw)], ["what?"])["inputs"][:1] * 2},
    "unknown key": lambda draw, pixels: infer([_base64(draw)], ["what?"], path="/etc/passwd"),
    "unknown output": lambda draw, pixels: infer([_base64(draw)], ["what?"], outputs=[{"name": "logits"}]),
    "more questions than images": lambda draw, pixels: infer([_base64(draw)], ["what?", "who?"]),
    "two images for a question": lambda draw, pixels: _shaped(draw, [1, 2]),
    "wrong shape": lambda draw, pixels: _shaped(draw, [3]),
    "negative shape": lambda draw, pixels: _shaped(draw, [-2]),
    "shape of 60,000 numbers": lambda draw, pixels: _shaped(draw, [2**62] * 60_000),
    "60,000 numbers for inputs": lambda draw, pixels: {"inputs": [1] * 60_000},
    "a shape that multiplies on": lambda draw, pixels: _shaped(draw, [2**62] * 10_000),
    "10,000 numbers for inputs": lambda draw, pixels: {"inputs": [1] * 10_000},
    "10,000 numbers for images": lambda draw, pixels: infer([1] * 10_000, ["what?"]),  # type: ignore[list-item]
    "huge shape": lambda draw, pixels: _shaped(draw, [10**30]),
    "numbers for texts": lambda draw, pixels: infer([_base64(draw)], [7]),  # type: ignore[list-item]
    "file path for an image": lambda draw, pixels: infer(["/etc/passwd"], ["what?"]),
    "file address for an image": lambda draw, pixels: infer(["file:///etc/passwd"], ["what?"]),
    "address for an image": lambda draw, pixels: infer(["http://127.0.0.1:1/cat.png"], ["what?"]),
    "base64 of no image": lambda draw, pixels: infer([b64encode(draw.randbytes(99)).decode()], ["what?"]),
    "base64 of a bomb": lambda draw, pixels: infer([b64encode(_bomb(draw, pixels)).decode()], ["what?"]),
    "one bad image among good ones": lambda draw, pixels: infer([_base64(draw), "aGFsbG8="], ["what?", "who?"]),
    "too many images": lambda draw, pixels: infer([_base64(draw)] * 17, ["what?"] * 17),
    "question of 100,000 characters": lambda draw, pixels: infer([_base64(draw)], ["what " * 20_000]),
    "empty question": lambda draw, pixels: infer([_base64(draw)], [" "]),
}
_ADDRESSES: dict[str, Callable[[str], tuple[str, str]]] = {
    "no question": lambda model: ("POST", "/answer"),
    "blank question": lambda model: ("POST", "/answer?question=++"),
    "question of 60,000 characters in the address": lambda model: ("POST", f"/answer?question={'x' * 60_000}"),
    "another model": lambda model: ("POST", "/v2/models/other/infer"),
    "address of two lines": lambda model: ("POST", "/a%0Ab"),
    "address that is not there": lambda model: ("POST", "/../../etc/passwd"),
    "wrong method": lambda model: ("GET", f"/v2/models/{model}/infer"),
    "method that nobody knows": lambda model: ("BREW", "/answer"),
}


def _shaped(draw: random.Random, shape: list[int]) -> dict[str, Any]:
    request = infer([_base64(draw)] * 2, ["what?"])
    request["inputs"][0]["shape"] = shape
    return request
