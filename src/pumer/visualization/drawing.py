"""Pages of shapes, written as PNG, SVG or GIF, and the parts that drawings of tokens are made of."""

import io
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from pumer.utils.files import write_bytes
from pumer.visualization.shapes import (
    FAINT,
    GAP,
    INK,
    MARGIN,
    PAPER,
    SCALE,
    SMALL,
    TEXT,
    Box,
    Colour,
    Hatched,
    Label,
    Segment,
    Shape,
    length,
)

ROWS = 6
"""The most lines of a text that are written; the rest is counted."""
OWN_COLOURS = 160
"""The most colours of an animation that are as drawn; the others are near."""


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
            colours = palette(pages, images)  # the same in all frames: what does not change takes no space
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


def palette(pages: Sequence[Page], images: Sequence[Image.Image]) -> Image.Image:
    """The colours of shapes, the commonest first, and of photos, none of which is so near to them as to replace one."""
    counted: Counter[Colour] = Counter(colour for page in pages for shape in page.shapes for colour in shape.colours)
    own = np.array([colour for colour, _ in counted.most_common(OWN_COLOURS)])
    photos = Image.fromarray(np.concatenate([np.asarray(image) for image in images])).quantize(256 - len(own))
    others = np.reshape(photos.getpalette() or [], (-1, 3))
    near = np.abs(others[:, None] - own).max(axis=2).min(axis=1) <= 4  # Pillow compares colours in steps of 4
    found = Image.new("P", (1, 1))
    found.putpalette(np.concatenate([own, others[~near]]).ravel().tolist())
    return found


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


class Key(NamedTuple):
    """An entry of a legend: what a colour means, if it has one."""

    text: str
    colour: Colour | None = None
    hatched: bool = False


Legend = Sequence[Key]


class Panel(NamedTuple):
    """A part of a drawing that has a title."""

    content: Page
    title: str
    legend: Legend = ()


def panel(content: Page, title: str, legend: Legend = ()) -> Page:
    """A page under a title and above a legend."""
    keys = [key for each in legend for key in _fitting(each, content.width)]
    lengths = [length(key.text, SMALL) + (20 if key.colour else 0) for key in keys]
    places, step = wrapped(lengths, content.width, gap=12), SMALL + 6
    below = 28 + content.height + 6
    page = Page(content.width, below + step * (places[-1][1] + 1 if places else 0), [Label(0, 12, title, TEXT)])
    page.place(content, 0, 28)
    for key, (left, line) in zip(keys, places, strict=True):
        middle = below + step * line + step / 2
        if key.colour is not None:
            swatch = Hatched if key.hatched else Box
            page.shapes.append(swatch(left, middle - 7, 14, 14, key.colour))
            left += 20
        page.shapes.append(Label(left, middle, key.text, SMALL, FAINT))
    return page


def _fitting(key: Key, width: float) -> list[Key]:
    """An entry of a legend, and the rest of its text where it is too long for a line."""
    first, *others = broken(key.text, width - (20 if key.colour else 0), SMALL)
    return [key._replace(text=first), *map(Key, others)]


def mosaic(colours: Sequence[Colour | None], rows: int, cols: int, width: float, height: float) -> Page:
    """Cells, row by row, of one colour each, or of none."""
    page, across, down = Page(width, height), width / cols, height / rows
    for row in range(rows):
        start = row * cols
        for at in range(start, start + cols):
            if at + 1 == (row + 1) * cols or colours[at + 1] != colours[start]:
                left = start % cols * across
                if (colour := colours[start]) is not None:
                    page.shapes.append(Box(left, row * down, (at % cols + 1) * across - left, down, colour))
                start = at + 1
    return page


def hatched(colours: Sequence[Colour | None], rows: int, cols: int, width: float, height: float) -> Page:
    """The same, hatched."""
    page = mosaic(colours, rows, cols, width, height)
    page.shapes = [Hatched(*vars(shape).values()) for shape in page.shapes]
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


def edging(cells: set[tuple[int, int]], across: float, down: float, thickness: float, colour: Colour) -> list[Shape]:
    """A frame along the borders of cells (row, column), on their side of the borders alone."""
    found: list[Shape] = []
    sides = [(below, right) for below in (-1, 0, 1) for right in (-1, 0, 1) if (below, right) != (0, 0)]
    for row, col in sorted(cells):
        for below, right in sides:
            if (row + below, col + right) not in cells:  # a band at a side, a square at a corner
                left = (col + 1) * across - thickness if right > 0 else col * across
                top = (row + 1) * down - thickness if below > 0 else row * down
                found.append(Box(left, top, thickness if right else across, thickness if below else down, colour))
    return found


def frame(left: float, top: float, right: float, bottom: float) -> tuple[Segment, ...]:
    """The four sides of a box."""
    return (
        (left, top, right, top),
        (right, top, right, bottom),
        (left, bottom, right, bottom),
        (left, top, left, bottom),
    )


def numbered(number: int, left: float, top: float, colour: Colour) -> tuple[Shape, ...]:
    """A number in a coloured box, with its centre."""
    ink = PAPER if sum(colour) < 450 else INK
    return Box(left - 6, top - 7, 12, 14, colour, 3), Label(left, top, str(number), 12, ink, centred=True)


def wrapped(lengths: Sequence[float], width: float, gap: float) -> list[tuple[float, int]]:
    """Left edge and row of boxes side by side, broken into rows no wider than `width`."""
    places, left, row = [], 0.0, 0
    for each in lengths:
        if left and left + each > width:
            left, row = 0.0, row + 1
        places.append((left, row))
        left += each + gap
    return places


def lines(texts: Sequence[str], width: float, size: int = TEXT, colour: Colour = INK, most: int = ROWS) -> Page:
    """Lines of text below each other; long ones are broken, at spaces where there are such, and cut after `most`."""
    rows, step = [row for text in texts for row in _cut(text, width, size, most)], size + 8
    labels = [Label(0, step * (row + 0.5), text, size, colour) for row, text in enumerate(rows)]
    return Page(width, step * len(rows), list(labels))


def _cut(text: str, width: float, size: int, most: int) -> list[str]:
    """At most so many lines of a text; the last one then says how many words are left out."""
    rows, words = broken(text, width, size), text.split()
    if len(rows) <= most:
        return rows
    for count in range(min(len(words) - 1, len(" ".join(rows[:most]).split())), 0, -1):
        shown = broken(f"{' '.join(words[:count])} ... (words left out: {len(words) - count})", width, size)
        if len(shown) <= most:
            return shown
    return [*rows[: most - 1], "..."]


def broken(text: str, width: float, size: int) -> list[str]:
    """A text as lines no wider than `width`."""
    rows = []
    for line in text.splitlines():
        row = ""
        for word in line.split():
            longer = f"{row} {word}".strip()
            if row and length(longer, size) > width:
                rows.append(row)
                longer = word
            while (
                len(longer) > 1 and length(letters := longer[: ceil(width) + 1], size) > width
            ):  # a letter takes a pixel
                fits = max(1, bisect_right(range(len(letters)), width, key=lambda n: length(letters[:n], size)) - 1)
                rows.append(longer[:fits])
                longer = longer[fits:]
            row = longer
        rows.append(row)
    return rows
