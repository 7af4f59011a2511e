"""Simple shapes, painted on an image or written as SVG.

Lengths are in pixels of a page `WIDTH` wide. The colours of groups are told apart by those who are colour-blind.
"""

import base64
import io
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from typing import Self
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Segment = tuple[float, float, float, float]
"""From one point to another."""
INK: Colour = (28, 30, 36)
FAINT: Colour = (90, 94, 106)
PAPER: Colour = (255, 255, 255)
BOX: Colour = (236, 238, 242)
GONE: Colour = (222, 222, 222)
"""Where a token was pruned; always hatched."""
LOW, HIGH = (240, 244, 250), (0, 60, 120)
"""The colours of the lowest and the highest score."""
GROUPS: tuple[Colour, ...] = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
)
"""Okabe and Ito, "Color Universal Design", 2008, without black."""
LARGEST: tuple[Colour, ...] = GROUPS[5], GROUPS[4], GROUPS[6]
"""Those of the largest tokens: vermilion, blue and purple, on which a white number is seen."""

WIDTH = 852
MARGIN = 14
GAP = 16
"""Between panels."""
HEADING, TEXT, SMALL = 22, 18, 16
"""Sizes of fonts."""
HATCH = 6
"""Between the diagonal lines of what is hatched, along an edge."""
SCALE = 2
"""Pixels of a PNG file per pixel of a page."""


@cache
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font, so that drawings look the same everywhere."""
    return ImageFont.load_default(size)


def length(text: str, size: int) -> float:
    """Pixels that a text takes, painted at whatever scale: those of small fonts are rounded for each letter."""
    return max(font(round(size * scale)).getlength(text) / scale for scale in (1, SCALE))


def group_colour(rank: int) -> Colour:
    """That of a group of words; the colours repeat where there are many groups."""
    return GROUPS[rank % len(GROUPS)]


def mixed(one: Colour, other: Colour, share: float) -> Colour:
    """`one` with a `share` in [0, 1] of `other`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


@dataclass(frozen=True)
class Shape:
    """What stands on a page, with its upper left corner, of a text the middle of its left edge."""

    left: float
    top: float

    def moved(self, right: float, down: float) -> Self:
        """The shape at another place."""
        return replace(self, left=self.left + right, top=self.top + down)

    @property
    def colours(self) -> tuple[Colour, ...]:
        """Those that it is painted in, unless it is an image."""
        return ()

    def paint(self, page: Image.Image, scale: float) -> None:
        """Paint it on an image."""
        raise NotImplementedError

    def write(self, svg: ElementTree.Element) -> None:
        """Add it to an SVG element."""
        raise NotImplementedError


@dataclass(frozen=True)
class ImageShape(Shape):
    """An image, stretched to a width and a height."""

    width: float
    height: float
    image: Image.Image

    def paint(self, page: Image.Image, scale: float) -> None:  # noqa: D102
        left, top, right, bottom = _pixels(self, scale)
        page.paste(self.image.resize((right - left, bottom - top), Image.Resampling.BICUBIC), (left, top))

    def write(self, svg: ElementTree.Element) -> None:  # noqa: D102
        file = io.BytesIO()
        self.image.quantize(256).save(file, format="PNG", optimize=True)
        data = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
        _element(svg, "image", **_place(self), preserveAspectRatio="none", href=data)


@dataclass(frozen=True)
class Box(Shape):
    """A filled rectangle with round corners."""

    width: float
    height: float
    colour: Colour
    radius: int = 0

    @property
    def colours(self) -> tuple[Colour, ...]:  # noqa: D102
        return (self.colour,)

    def paint(self, page: Image.Image, scale: float) -> None:  # noqa: D102
        left, top, right, bottom = _pixels(self, scale)
        if right > left and bottom > top:
            corners = left, top, right - 1, bottom - 1
            ImageDraw.Draw(page).rounded_rectangle(corners, round(self.radius * scale), self.colour)

    def write(self, svg: ElementTree.Element) -> None:  # noqa: D102
        smooth: dict[str, float | str] = {"rx": self.radius} if self.radius else {"shape-rendering": "crispEdges"}
        _element(svg, "rect", **_place(self), fill=_hex(self.colour), **smooth)


@dataclass(frozen=True)
class Hatched(Box):
    """A filled rectangle with diagonal lines, which no part of a photo looks like."""

    @property
    def colours(self) -> tuple[Colour, ...]:
        """Of the rectangle, and of the lines."""
        return self.colour, mixed(self.colour, (0, 0, 0), 0.4)

    def paint(self, page: Image.Image, scale: float) -> None:  # noqa: D102
        super().paint(page, scale)
        left, top, right, bottom = _pixels(self, scale)
        diagonals = np.arange(left, right) + np.arange(top, bottom)[:, None]
        lines = np.where(diagonals % round(HATCH * scale) < max(1, round(scale)), 255, 0).astype(np.uint8)
        page.paste(self.colours[1], (left, top), Image.fromarray(lines))

    def write(self, svg: ElementTree.Element) -> None:  # noqa: D102
        super().write(svg)
        right, bottom, moves = self.left + self.width, self.top + self.height, []
        for diagonal in range(ceil((self.left + self.top) / HATCH), ceil((right + bottom) / HATCH)):
            x, end = max(self.left, HATCH * diagonal - bottom), min(right, HATCH * diagonal - self.top)
            moves.append(f"M{x:.6g} {HATCH * diagonal - x:.6g}L{end:.6g} {HATCH * diagonal - end:.6g}")
        _element(svg, "path", d="".join(moves), stroke=_hex(self.colours[1]), **{"stroke-width": 0.8})


@dataclass(frozen=True)
class Strokes(Shape):
    """Level and upright line segments."""

    segments: tuple[Segment, ...]
    colour: Colour
    thickness: float

    @property
    def colours(self) -> tuple[Colour, ...]:  # noqa: D102
        return (self.colour,)

    def paint(self, page: Image.Image, scale: float) -> None:  # noqa: D102
        pen, thick = ImageDraw.Draw(page), max(1, round(self.thickness * scale))
        for x, y, right, bottom in self.segments:
            places = [round(scale * at) - thick // 2 for at in (self.left + x, self.top + y)]
            ends = [round(scale * at) - thick // 2 + thick - 1 for at in (self.left + right, self.top + bottom)]
            pen.rectangle((*places, *ends), self.colour)

    def write(self, svg: ElementTree.Element) -> None:  # noqa: D102
        moves = (
            f"M{self.left + x:.6g} {self.top + y:.6g}L{self.left + right:.6g} {self.top + bottom:.6g}"
            for x, y, right, bottom in self.segments
        )
        style: dict[str, float | str] = {
            "stroke": _hex(self.colour),
            "stroke-width": self.thickness,
            "stroke-linecap": "square",
        }
        _element(svg, "path", d="".join(moves), **style)


@dataclass(frozen=True)
class Label(Shape):
    """A line of text."""

    text: str
    size: int
    colour: Colour = INK
    centred: bool = False

    @property
    def colours(self) -> tuple[Colour, ...]:  # noqa: D102
        return (self.colour,)

    def paint(self, page: Image.Image, scale: float) -> None:  # noqa: D102
        place, anchor = (self.left * scale, self.top * scale), "mm" if self.centred else "lm"
        ImageDraw.Draw(page).text(place, self._shown, self.colour, font(round(self.size * scale)), anchor)

    def write(self, svg: ElementTree.Element) -> None:  # noqa: D102
        style: dict[str, float | str] = {"font-size": self.size, "text-anchor": "middle" if self.centred else "start"}
        place = {"x": self.left, "y": self.top + 0.35 * self.size}
        _element(svg, "text", **place, **style, fill=_hex(self.colour)).text = self._shown

    @property
    def _shown(self) -> str:
        """Without the characters that a font, or XML, does not have."""
        return "".join(letter if letter.isprintable() else " " for letter in self.text)


def _pixels(shape: ImageShape | Box, scale: float) -> tuple[int, int, int, int]:
    left, top, right, bottom = shape.left, shape.top, shape.left + shape.width, shape.top + shape.height
    return round(left * scale), round(top * scale), round(right * scale), round(bottom * scale)


def _place(shape: ImageShape | Box) -> dict[str, float]:
    return {"x": shape.left, "y": shape.top, "width": shape.width, "height": shape.height}


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _element(svg: ElementTree.Element, name: str, **attributes: float | str) -> ElementTree.Element:
    written = {key: value if isinstance(value, str) else f"{value:.6g}" for key, value in attributes.items()}
    return ElementTree.SubElement(svg, name, written)
