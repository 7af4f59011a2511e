"""The words of a question: in boxes, merged ones joined by a bracket, pruned ones struck out."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from pumer.visualization.drawing import Page, lines, wrapped
from pumer.visualization.shapes import (
    BOX,
    FAINT,
    INK,
    PAPER,
    SMALL,
    TEXT,
    Box,
    Colour,
    Label,
    Segment,
    Shape,
    Strokes,
    group_colour,
    length,
    mixed,
)
from pumer.visualization.views import Fate

CHIP_HEIGHT = 30
BRACKET_STEP = 6
"""Between the brackets of two groups of words."""
CHIP_ROWS = 8
"""The most rows of words that are drawn; the rest is counted."""
SPACE = "\u0120"
"""How a byte-level tokenizer writes the space before a word."""


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
    places = zip(words, lengths, wrapped(lengths, width, gap=6), strict=True)
    return [Chip(word, left, row * step, left + each) for word, each, (left, row) in places]


def bracket_room(brackets: int) -> int:
    """Pixels below a row of chips that `brackets` groups need."""
    return 8 + BRACKET_STEP * brackets


def bracket(joined: Sequence[Chip], level: int, colour: Colour, width: float) -> list[Shape]:
    """Join chips by a line so many levels below them; where it goes on in another row, it leads to the edge."""
    segments: list[Segment] = []
    rows = sorted({chip.bottom for chip in joined})
    for bottom in rows:
        centres = [chip.middle for chip in joined if chip.bottom == bottom]
        below = bottom + 6 + BRACKET_STEP * level
        segments += [(centre, bottom + 1, centre, below) for centre in centres]
        left = min(centres) if bottom == rows[0] else 0
        right = max(centres) if bottom == rows[-1] else width
        segments.append((left, below, right, below))
    return [Strokes(0, 0, tuple(segments), colour, 2.5)]


def text(fate: Fate, levels: int, question: str | Sequence[str] | None, width: float) -> list[Page]:
    """The words in boxes, merged ones coloured and bracketed, pruned ones struck out; and what else is to be said.

    Args:
        fate: Of the tokens.
        levels: Brackets below each other that there is room for.
        question: See `pumer.draw`.
        width: In pixels.
    """
    words, cut = _words(question, len(fate.text))
    labels = [str(position) for position in range(len(fate.text))] if words is None else words
    placed = chips(labels, width, brackets=levels)
    last = CHIP_ROWS * (CHIP_HEIGHT + bracket_room(levels))
    shown = {token: chip for token, chip in zip(fate.text, placed, strict=True) if chip.top < last}
    bottom = max((chip.bottom for chip in shown.values()), default=0)
    line = Page(width, bottom + bracket_room(levels) if shown else 0)
    joined = defaultdict(list)
    for token, chip in shown.items():
        colour = BOX
        if token in fate.text_groups:
            colour = mixed(PAPER, group_colour(fate.text_groups[token]), 0.55)
            joined[fate.text_groups[token]].append(chip)
        line.shapes += chip.draw(colour, gone=fate.pruned_at[token] >= 0)
    for rank, level in bracket_levels(fate).items():
        if joined[rank]:
            line.shapes += bracket(joined[rank], level, group_colour(rank), width)
    notes = [f"tokens left out here: {len(placed) - len(shown)}"] if len(shown) < len(placed) else []
    notes += [f"the question was cut after {len(fate.text)} tokens; not read: {cut}"] if cut else []
    asked = [lines([question], width)] if isinstance(question, str) and words is None else []
    return [line, *asked, *([lines(notes, width, SMALL, FAINT, most=2)] if notes else [])]


def bracket_levels(fate: Fate) -> dict[int, int]:
    """How far below the words the bracket of each group is, so that no two of them touch."""
    spans: dict[int, list[int]] = defaultdict(list)
    for token in fate.text:
        if token in fate.text_groups:
            spans[fate.text_groups[token]].append(token)
    levels: dict[int, int] = {}
    ends: list[int] = []
    for rank, tokens in sorted(spans.items(), key=lambda span: span[1][0]):
        levels[rank] = next((level for level, end in enumerate(ends) if end < tokens[0]), len(ends))
        ends[levels[rank] : levels[rank] + 1] = [tokens[-1]]
    return levels


def _words(question: str | Sequence[str] | None, count: int) -> tuple[list[str] | None, str]:
    """One word for each of `count` real text tokens, None where the question does not give as many; and what is cut."""
    if isinstance(question, str):
        words = ["[CLS]", *re.findall(r"\w+|[^\w\s]", question), "[SEP]"]
        return (words if len(words) == count else None), " ".join(words[count - 1 : -1])  # a token is a word at most
    given = list(question or ())
    words, rest = [word.removeprefix(SPACE) for word in given[:count]], given[count:]
    return (words if len(words) == count else None), _unread(rest)


def _unread(tokens: Sequence[str]) -> str:
    """The words of the tokens that were cut off, without the rest of one that was read in part."""
    spaced = any(SPACE in token for token in tokens)  # a byte-level tokenizer
    inside = [not token.startswith(SPACE) if spaced else token.startswith("##") for token in tokens]
    start = next((at for at, goes_on in enumerate(inside) if not goes_on), len(tokens))
    joined = "".join(tokens[start:]).replace(SPACE, " ") if spaced else " ".join(tokens[start:]).replace(" ##", "")
    return joined.strip()
