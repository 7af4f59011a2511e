"""Pages of simple shapes, written as PNG or SVG, and the parts that drawings of tokens are made of.

Lengths are in pixels of a page `WIDTH` wide. The colours of groups are told apart by those who are colour-blind.
"""

import base64
import io
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple, Self
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pumer.utils.files import write_bytes

Colour = tuple[int, int, int]
Segment = tuple[float, float, float, float]
"""From one point to another."""
INK: Colour = (28, 30, 36)
FAINT: Colour = (90, 94, 106)
PAPER: Colour = (255, 255, 255)
BOX: Colour = (236, 238, 242)
GONE: Colour = (222, 222, 222)
"""Where a token was pruned."""
LOW, HIGH = (240, 244, 250), (0, 60, 120)
"""The colours of the lowest and the highest score."""
GROUPS: tuple[Colour, ...] = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
)
"""Okabe and Ito, "Color Universal Design", 2008, without black."""

WIDTH = 852
MARGIN = 14
GAP = 16
"""Between panels."""
HEADING, TEXT, SMALL = 22, 18, 16
"""Sizes of fonts."""
CHIP_HEIGHT = 30
BRACKET_STEP = 6
"""Between the brackets of two groups of words."""
SCALE = 2
"""Pixels of a PNG file per pixel of a page."""


@cache
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font, so that drawings look the same everywhere."""
    return ImageFont.load_default(size)


def length(text: str, size: int) -> float:
    """Pixels that a text takes."""
    return font(size).getlength(text)


def group_colour(rank: int) -> Colour:
    """That of a group of words; the colours repeat where there are many groups."""
    return GROUPS[rank % len(GROUPS)]


def mixed(one: Colour, other: Colour, share: float) -> Colour:
    """`one` with a `share` in [0, 1] of `other`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


# ---------------------------------------------------------------- shapes


@dataclass(frozen=True)
class Shape:
    """What stands on a page, with its upper left corner, of a text the middle of its left edge."""

    left: float
    top: float

    def moved(self, right: float, down: float) -> Self:
        """The shape at another place."""
        return replace(self, left=self.left + right, top=self.top + down)

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

    def paint(self, page: Image.Image, scale: float) -> None:  # noqa: D102
        left, top, right, bottom = _pixels(self, scale)
        if right > left and bottom > top:
            corners = left, top, right - 1, bottom - 1
            ImageDraw.Draw(page).rounded_rectangle(corners, round(self.radius * scale), self.colour)

    def write(self, svg: ElementTree.Element) -> None:  # noqa: D102
        smooth: dict[str, float | str] = {"rx": self.radius} if self.radius else {"shape-rendering": "crispEdges"}
        _element(svg, "rect", **_place(self), fill=_hex(self.colour), **smooth)


@dataclass(frozen=True)
class Strokes(Shape):
    """Level and upright line segments."""

    segments: tuple[Segment, ...]
    colour: Colour
    thickness: float

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


# ---------------------------------------------------------------- pages


@dataclass
class Page:
    """Shapes on white paper."""

    width: float
    height: float
    shapes: list[Shape] = field(default_factory=list)

    def place(self, part: "Page", left: float, top: float) -> None:
        """Put another page's shapes on this one."""
        self.shapes += [shape.moved(left, top) for shape in part.shapes]

    def image(self, scale: float = SCALE) -> Image.Image:
        """The page as pixels, RGB."""
        made = Image.new("RGB", (max(1, round(self.width * scale)), max(1, round(self.height * scale))), PAPER)
        for shape in self.shapes:
            shape.paint(made, scale)
        return made

    def svg(self) -> str:
        """The page as vectors; text is text."""
        size = {"width": f"{self.width:g}", "height": f"{self.height:g}"}
        root = ElementTree.Element(
            "svg",
            {**size, "viewBox": f"0 0 {self.width:g} {self.height:g}", "xmlns": "http://www.w3.org/2000/svg"},
        )
        root.set("font-family", "Aileron, Helvetica, Arial, sans-serif")
        Box(0, 0, self.width, self.height, PAPER).write(root)
        for shape in self.shapes:
            shape.write(root)
        return ElementTree.tostring(root, encoding="unicode")


@dataclass(frozen=True)
class Drawing:
    """A drawing of tokens, before and after each reduction.

    Attributes:
        page: From a number to a page: 0 for the tokens that entered, then one for those left after each reduction.
        count: Of pages; the last one is the drawing.
    """

    page: Callable[[int], Page]
    count: int

    @property
    def last(self) -> Page:
        """What is drawn, unless it is an animation."""
        return self.page(self.count - 1)

    @property
    def image(self) -> Image.Image:
        """The drawing as pixels, RGB."""
        return self.last.image()

    def encoded(self, suffix: str) -> bytes:
        """The content of a file.

        Args:
            suffix: ".png"; ".svg", whose text is text; or ".gif", an animation with a frame for each page.
        """
        if suffix == ".svg":
            return self.last.svg().encode("utf-8", errors="replace")
        file = io.BytesIO()
        if suffix == ".gif":
            pages = [self.page(at) for at in range(self.count)]
            width, height = max(page.width for page in pages), max(page.height for page in pages)
            images = [replace(page, width=width, height=height).image(1) for page in pages]
            colours = images[-1].quantize(128)  # the same in all frames: what does not change takes no space
            frames = [image.quantize(palette=colours, dither=Image.Dither.NONE) for image in images]
            shown = [1200] * (len(frames) - 1) + [3000]
            frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:], duration=shown, loop=0)
        else:
            self.image.save(file, format="PNG")
        return file.getvalue()

    def save(self, path: str | Path) -> None:
        """Write a PNG, SVG or GIF file, by its suffix, as a whole or not at all."""
        write_bytes(path, self.encoded(Path(path).suffix.lower()))

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return self.encoded(".png")


def together(drawings: Sequence[Drawing]) -> Drawing:
    """Drawings below each other; one with fewer pages stays at its last."""

    def page(at: int) -> Page:
        return stacked([drawing.page(min(at, drawing.count - 1)) for drawing in drawings], 0)

    return Drawing(page, max(drawing.count for drawing in drawings))


def beside(parts: Sequence[Page]) -> Page:
    """Pages side by side, tops aligned."""
    row = Page(sum(part.width for part in parts) + GAP * (len(parts) - 1), max(part.height for part in parts))
    left = 0.0
    for part in parts:
        row.place(part, left, 0)
        left += part.width + GAP
    return row


def stacked(parts: Sequence[Page], gap: float = 10) -> Page:
    """Pages below each other."""
    height = sum(part.height + gap for part in parts) - gap
    column, top = Page(max(part.width for part in parts), height), 0.0
    for part in parts:
        column.place(part, 0, top)
        top += part.height + gap
    return column


def framed(page: Page) -> Page:
    """A page with a margin around."""
    whole = Page(page.width + 2 * MARGIN, page.height + 2 * MARGIN)
    whole.place(page, MARGIN, MARGIN)
    return whole


# ---------------------------------------------------------------- parts of drawings


Legend = Sequence[tuple[Colour | None, str]]
"""What colours mean: (colour or none, text)."""


class Panel(NamedTuple):
    """A part of a drawing that has a title."""

    content: Page
    title: str
    legend: Legend = ()


def panel(content: Page, title: str, legend: Legend = ()) -> Page:
    """A page under a title and above a legend."""
    lengths = [length(text, SMALL) + (20 if colour else 0) for colour, text in legend]
    places, step = _wrapped(lengths, content.width, gap=12), SMALL + 6
    below = 28 + content.height + 6
    page = Page(content.width, below + step * (places[-1][1] + 1 if places else 0), [Label(0, 12, title, TEXT)])
    page.place(content, 0, 28)
    for (colour, text), (left, line) in zip(legend, places, strict=True):
        middle = below + step * line + step / 2
        if colour is not None:
            page.shapes.append(Box(left, middle - 7, 14, 14, colour))
            left += 20
        page.shapes.append(Label(left, middle, text, SMALL, FAINT))
    return page


def greyed(image: Image.Image, shares: Sequence[float], rows: int, cols: int) -> Image.Image:
    """An image whose cells are grey, each with a share of white; those with share 0 stay as they are."""
    row, col = (np.arange(pixels) * cells // pixels for pixels, cells in ((image.height, rows), (image.width, cols)))
    share = np.reshape(shares, (rows, cols))[row][:, col, None]
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None]
    return Image.fromarray(np.where(share > 0, grey + (255 - grey) * share, np.asarray(image)).round().astype(np.uint8))


def mosaic(colours: Sequence[Colour], rows: int, cols: int, width: float, height: float) -> Page:
    """Cells, row by row, of one colour each."""
    page, across, down = Page(width, height), width / cols, height / rows
    for row in range(rows):
        start = row * cols
        for at in range(start, start + cols):
            if at + 1 == (row + 1) * cols or colours[at + 1] != colours[start]:
                left = start % cols * across
                page.shapes.append(Box(left, row * down, (at % cols + 1) * across - left, down, colours[at]))
                start = at + 1
    return page


def borders(keys: Sequence[Hashable], rows: int, cols: int, width: float, height: float) -> tuple[Segment, ...]:
    """The borders of every set of cells that have the same key; cells whose key is None have none among them."""
    found, across, down = [], width / cols, height / rows
    grid = {(at // cols, at % cols): key for at, key in enumerate(keys)}
    for row in range(rows + 1):
        for col in range(cols + 1):
            left, top = col * across, row * down
            if grid.get((row, col)) != grid.get((row - 1, col)):
                found.append((left, top, left + across, top))
            if grid.get((row, col)) != grid.get((row, col - 1)):
                found.append((left, top, left, top + down))
    return tuple(found)


def frame(left: float, top: float, right: float, bottom: float) -> tuple[Segment, ...]:
    """The four sides of a box."""
    return (
        (left, top, right, top),
        (right, top, right, bottom),
        (left, bottom, right, bottom),
        (left, top, left, bottom),
    )


def numbered(number: int, left: float, top: float) -> tuple[Shape, ...]:
    """A number in a white box, with its centre."""
    return Box(left - 10, top - 10, 20, 20, PAPER, 4), Label(left, top, str(number), SMALL, INK, centred=True)


def _wrapped(lengths: Sequence[float], width: float, gap: float) -> list[tuple[float, int]]:
    """Left edge and row of boxes side by side, broken into rows no wider than `width`."""
    places, left, row = [], 0.0, 0
    for each in lengths:
        if left and left + each > width:
            left, row = 0.0, row + 1
        places.append((left, row))
        left += each + gap
    return places


class Chip(NamedTuple):
    """A word in its box."""

    word: str
    left: float
    top: float
    right: float

    @property
    def bottom(self) -> float:
        """Lower edge."""
        return self.top + CHIP_HEIGHT

    @property
    def middle(self) -> float:
        """Horizontal centre."""
        return (self.left + self.right) / 2

    def draw(self, colour: Colour, gone: bool) -> list[Shape]:
        """The word; struck out when it is gone."""
        middle = self.top + CHIP_HEIGHT / 2
        box = Box(self.left, self.top, self.right - self.left, CHIP_HEIGHT, colour, 7)
        label = Label(self.middle, middle, self.word, TEXT, FAINT if gone else INK, centred=True)
        stroke = Strokes(0, 0, ((self.left + 6, middle, self.right - 6, middle),), INK, 1.5)
        return [box, label, stroke] if gone else [box, label]


def chips(words: Sequence[str], width: float, brackets: int) -> list[Chip]:
    """Words side by side, broken into rows no wider than `width`, with room for `brackets` below each row."""
    lengths = [min(length(word, TEXT) + 16, width) for word in words]
    step = CHIP_HEIGHT + bracket_room(brackets)
    places = zip(words, lengths, _wrapped(lengths, width, gap=6), strict=True)
    return [Chip(word, left, row * step, left + each) for word, each, (left, row) in places]


def bracket_room(brackets: int) -> int:
    """Pixels below a row of chips that `brackets` groups need."""
    return 8 + BRACKET_STEP * brackets


def bracket(joined: Sequence[Chip], level: int, colour: Colour) -> list[Shape]:
    """Join chips by a line so many levels below them, in every row they stand in."""
    segments: list[Segment] = []
    for bottom in {chip.bottom for chip in joined}:
        centres = [chip.middle for chip in joined if chip.bottom == bottom]
        below = bottom + 6 + BRACKET_STEP * level
        segments += [(centre, bottom + 1, centre, below) for centre in centres]
        segments.append((min(centres), below, max(centres), below))
    return [Strokes(0, 0, tuple(segments), colour, 2.5)]


def lines(texts: Sequence[str], width: float, size: int = TEXT, colour: Colour = INK) -> Page:
    """Lines of text below each other; long ones are broken, at spaces where there are such."""
    rows, step = [row for text in texts for row in _broken(text, width, size)], size + 8
    labels = [Label(0, step * (row + 0.5), text, size, colour) for row, text in enumerate(rows)]
    return Page(width, step * len(rows), list(labels))


def _broken(text: str, width: float, size: int) -> list[str]:
    rows = []
    for line in text.splitlines():
        row = ""
        for word in line.split():
            longer = f"{row} {word}".strip()
            if row and length(longer, size) > width:
                rows.append(row)
                longer = word
            while length(longer, size) > width and len(longer) > 1:
                fits = next(n for n in range(len(longer) - 1, 0, -1) if n == 1 or length(longer[:n], size) <= width)
                rows.append(longer[:fits])
                longer = longer[fits:]
            row = longer
        rows.append(row)
    return rows
