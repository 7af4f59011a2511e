"""Shapes that `pumer.visualization.visualize` draws with: panels with legends, patch outlines, words in boxes."""

import colorsys
from collections.abc import Collection, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
INK: Colour = (28, 30, 36)
FAINT: Colour = (112, 116, 128)
PAPER: Colour = (255, 255, 255)
BOX: Colour = (236, 238, 242)
LAYER_COLOURS: tuple[Colour, ...] = ((106, 38, 158), (196, 44, 104), (240, 118, 30), (250, 196, 40))

MARGIN = 20
NARROWEST_PANEL = 330  # pixels; its legend must fit
LEGEND_LINE = 24
CHIP_HEIGHT = 32
BRACKET_STEP = 6  # pixels between the brackets of two groups of words


def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font, so that drawings look the same everywhere."""
    return ImageFont.load_default(size)


def layer_colour(rank: int, count: int) -> Colour:
    """The colour of reduction number `rank` of `count`: early ones dark, late ones bright."""
    if count <= len(LAYER_COLOURS):
        return LAYER_COLOURS[rank]
    place = rank * (len(LAYER_COLOURS) - 1) / (count - 1)
    start = min(int(place), len(LAYER_COLOURS) - 2)
    return mixed(LAYER_COLOURS[start], LAYER_COLOURS[start + 1], place - start)


def group_colour(rank: int) -> Colour:
    """Hues a golden angle apart, so that groups of neighbouring rank look most different."""
    saturation, value = ((0.9, 0.9), (0.65, 1.0), (1.0, 0.68))[rank % 3]
    red, green, blue = colorsys.hsv_to_rgb((0.58 + rank * 0.618034) % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def mixed(one: Colour, other: Colour, share: float) -> Colour:
    """`one` with a `share` in [0, 1] of `other`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def patch_box(patch: int, cols: int, cell: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a patch, given its raster position."""
    row, col = divmod(patch, cols)
    return col * cell, row * cell, (col + 1) * cell, (row + 1) * cell


def tint(image: Image.Image, box: tuple[int, int, int, int], colour: Colour, share: float) -> None:
    """Mix a `share` of `colour` into a box of an image."""
    part = image.crop(box)
    image.paste(Image.blend(part, Image.new("RGB", part.size, colour), share), box)


def outline(image: Image.Image, patches: Collection[int], cols: int, cell: int, colour: Colour) -> None:
    """Draw the border of a set of patches, inside of it."""
    pen, thick = ImageDraw.Draw(image), max(2, cell // 16)
    for patch in patches:
        left, top, right, bottom = patch_box(patch, cols, cell)
        sides = (
            (patch - cols, (left, top, right - 1, top + thick - 1)),
            (patch + cols, (left, bottom - thick, right - 1, bottom - 1)),
            (patch - 1 if patch % cols else None, (left, top, left + thick - 1, bottom - 1)),
            (patch + 1 if (patch + 1) % cols else None, (right - thick, top, right - 1, bottom - 1)),
        )
        for neighbour, side in sides:
            if neighbour not in patches:
                pen.rectangle(side, colour)


def panel(image: Image.Image, title: str, legend: Sequence[tuple[Colour | None, str]]) -> Image.Image:
    """An image under a title and above a legend of (colour or none, text)."""
    title_height, width = 34, max(image.width, NARROWEST_PANEL)
    lengths = [round(font(15).getlength(text)) + (21 if colour else 0) for colour, text in legend]
    places = _wrapped(lengths, width, gap=18)
    lines = places[-1][1] + 1 if places else 1
    below = title_height + image.height + 8
    page = Image.new("RGB", (width, below + LEGEND_LINE * lines), PAPER)
    page.paste(image, (0, title_height))
    pen = ImageDraw.Draw(page)
    pen.text((0, title_height // 2 - 2), title, INK, font(19), anchor="lm")
    for (colour, text), (left, line) in zip(legend, places, strict=True):
        middle = below + LEGEND_LINE * line + LEGEND_LINE // 2
        if colour is not None:
            pen.rectangle((left, middle - 7, left + 14, middle + 7), colour)
            left += 21
        pen.text((left, middle), text, FAINT, font(15), anchor="lm")
    return page


def _wrapped(lengths: Sequence[int], width: int, gap: int) -> list[tuple[int, int]]:
    """Left edge and row of boxes side by side, broken into rows no wider than `width`."""
    places, left, row = [], 0, 0
    for length in lengths:
        if left and left + length > width:
            left, row = 0, row + 1
        places.append((left, row))
        left += length + gap
    return places


class Chip(NamedTuple):
    """A word in its box."""

    word: str
    left: int
    top: int
    right: int

    @property
    def bottom(self) -> int:
        """Lower edge."""
        return self.top + CHIP_HEIGHT

    @property
    def middle(self) -> int:
        """Horizontal centre."""
        return (self.left + self.right) // 2

    def draw(self, pen: ImageDraw.ImageDraw, colour: Colour, gone: bool) -> None:
        """Draw the word; struck out when it is gone."""
        height = self.top + CHIP_HEIGHT // 2
        pen.rounded_rectangle((self.left, self.top, self.right, self.bottom), 8, colour)
        pen.text((self.middle, height), self.word, FAINT if gone else INK, font(19), anchor="mm")
        if gone:
            pen.line((self.left + 6, height, self.right - 6, height), INK, 2)


def chips(words: Sequence[str], width: int, brackets: int) -> list[Chip]:
    """Words side by side, broken into rows no wider than `width`, with room for `brackets` below each row."""
    lengths = [round(font(19).getlength(word)) + 20 for word in words]
    step = CHIP_HEIGHT + bracket_room(brackets)
    places = zip(words, lengths, _wrapped(lengths, width, gap=8), strict=True)
    return [Chip(word, left, row * step, left + length) for word, length, (left, row) in places]


def bracket_room(brackets: int) -> int:
    """Pixels below a row of chips that `brackets` groups need."""
    return 12 + BRACKET_STEP * brackets


def bracket(pen: ImageDraw.ImageDraw, joined: Sequence[Chip], rank: int) -> None:
    """Join chips by a line below them, in every row they stand in."""
    for bottom in {chip.bottom for chip in joined}:
        centres = [chip.middle for chip in joined if chip.bottom == bottom]
        below = bottom + 7 + BRACKET_STEP * rank
        for centre in centres:
            pen.line((centre, bottom + 1, centre, below), group_colour(rank), 3)
        pen.line((min(centres) - 1, below, max(centres) + 1, below), group_colour(rank), 3)


def title(lines: Sequence[str], width: int) -> Image.Image:
    """Lines of text above each other, the first one larger; long ones are broken at spaces."""
    sizes = [24, *[19] * len(lines)]
    rows = [(row, size) for line, size in zip(lines, sizes, strict=False) for row in _broken(line, width, size)]
    page = Image.new("RGB", (width, max(1, 32 * len(rows))), PAPER)
    pen = ImageDraw.Draw(page)
    for row, (text, size) in enumerate(rows):
        pen.text((0, 16 + 32 * row), text, INK, font(size), anchor="lm")
    return page


def _broken(text: str, width: int, size: int) -> list[str]:
    rows = []
    for line in text.splitlines():
        row = ""
        for word in line.split():
            longer = f"{row} {word}".strip()
            if row and font(size).getlength(longer) > width:
                rows.append(row)
                longer = word
            row = longer
        rows.append(row)
    return rows


def beside(parts: Sequence[Image.Image]) -> Image.Image:
    """Images side by side, tops aligned."""
    width = sum(part.width for part in parts) + MARGIN * (len(parts) - 1)
    row = Image.new("RGB", (width, max(part.height for part in parts)), PAPER)
    left = 0
    for part in parts:
        row.paste(part, (left, 0))
        left += part.width + MARGIN
    return row


def stacked(parts: Sequence[Image.Image], gap: int = 12) -> Image.Image:
    """Images below each other, with a margin around."""
    height = sum(part.height + gap for part in parts) - gap + 2 * MARGIN
    page = Image.new("RGB", (max(part.width for part in parts) + 2 * MARGIN, height), PAPER)
    top = MARGIN
    for part in parts:
        page.paste(part, (MARGIN, top))
        top += part.height + gap
    return page
