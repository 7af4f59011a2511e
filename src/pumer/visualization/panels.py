"""The panels of a drawing: an image, what was pruned of it, the tokens that are left, and maps of scores."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from math import ceil, isfinite

import numpy as np
from PIL import Image

from pumer.reducers.base import Place
from pumer.visualization import drawing
from pumer.visualization.drawing import Key, Page, Panel
from pumer.visualization.saliency import Saliency
from pumer.visualization.shapes import (
    GAP,
    GONE,
    HIGH,
    INK,
    LARGEST,
    LOW,
    MARGIN,
    PAPER,
    SCALE,
    WIDTH,
    Box,
    Colour,
    ImageShape,
    Shape,
    Strokes,
    mixed,
)
from pumer.visualization.views import BEFORE, Fate, View

PANEL_WIDTH, PANEL_HEIGHT = 264, 420
"""The most pixels of a page that an image takes in a panel, beside two others."""
WIDE = 2
"""Images so many times as wide as high take the whole width, below each other."""
LARGE = 16
"""Cells from so many pixels on have the number of their token, each; smaller ones are filled with its colour."""
SCORES: drawing.Legend = (Key("lowest score: pruned first", LOW), Key("highest", HIGH))
"""What the colours of maps of scores mean."""


def rows_of(view: View, fate: Fate, last: Fate) -> list[Page]:
    """A view, what was pruned of it, and the tokens that are left, side by side or below each other.

    Args:
        view: The image.
        fate: Of its tokens by now.
        last: After all reductions.
    """
    found = panels_of(view, fate, last)
    if len(found) == 1:
        return [_noted(found[0], fate.unit)]
    shown = [drawing.panel(*each) for each in found]
    return [drawing.stacked(shown) if is_wide(view.image) else drawing.beside(shown)]


def image_alone(image: Image.Image, title: str) -> Page:
    """An image of which each token is left."""
    width, height = size_of(image)
    return _noted(Panel(Page(width, height, [ImageShape(0, 0, width, height, image)]), title), "tokens")


def _noted(panel: Panel, unit: str) -> Page:
    note = drawing.lines([f"nothing was reduced: each of the {unit} is left"], PANEL_WIDTH)
    parts = [drawing.panel(*panel), drawing.panel(note, "")]
    return drawing.stacked(parts) if panel.content.width > PANEL_WIDTH else drawing.beside(parts)


def panels_of(view: View, fate: Fate, last: Fate) -> list[Panel]:
    """A view; what was pruned of it, if any image's tokens are; and, unless nothing was reduced, the tokens left."""
    width, height = size_of(view.image)
    edges = zip((width, height), view.image.size, (view.cols, view.rows), strict=True)
    size = [ceil(min(max(own, edge), SCALE * edge) / cells) * cells for edge, own, cells in edges]
    image = view.image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    shown = Page(width, height, [ImageShape(0, 0, width, height, image)])
    of_patches = " and [CLS]" if fate.unit == "patches" else ""
    found = [Panel(shown, view.title, [Key(f"{view.rows} x {view.cols} {fate.unit}{of_patches}")])]
    ever = _gone(view, last)
    if not (ever or last.groups(view.tokens)):
        return found
    if any(_gone(each, last) for each in last.views):
        found.append(_pruned_panel(shown, view, fate, ever))
    return [*found, _merged_panel(view, fate, width, height)]


def size_of(image: Image.Image) -> tuple[float, float]:
    """Width and height of an image in a panel."""
    most = WIDTH - 2 * MARGIN if is_wide(image) else PANEL_WIDTH
    width = min(most, max(PANEL_HEIGHT * image.width / image.height, most / 2))
    return width, min(width * image.height / image.width, 2 * PANEL_HEIGHT)


def is_wide(image: Image.Image) -> bool:
    """Whether the panels of an image stand below each other."""
    return image.width > WIDE * image.height


def _gone(view: View, fate: Fate) -> dict[int, int]:
    """Of each cell that is gone the index of the place where it was pruned; -1: before the decoder."""
    places = ((cell, -1 if token is None else fate.pruned_at[token]) for cell, token in enumerate(view.tokens))
    absent = fate.unit == "tokens"  # of an image in a prompt; a grid of patches has a token in each cell
    return {cell: at for cell, at in places if at >= 0 or (absent and view.tokens[cell] is None)}


def _pruned_panel(image: Page, view: View, fate: Fate, ever: dict[int, int]) -> Panel:
    """An image under what was pruned: the earlier, the paler."""
    gone, places = _gone(view, fate), sorted(set(ever.values()))
    greys = {place: _grey(rank / max(len(places) - 1, 1)) for rank, place in enumerate(places)}
    page = Page(image.width, image.height, list(image.shapes))
    cells = [greys.get(gone.get(cell, -2)) for cell in range(len(view.tokens))]
    page.place(drawing.hatched(cells, view.rows, view.cols, page.width, page.height), 0, 0)
    counts = Counter(gone.values())
    names = {place: BEFORE if place < 0 else fate.all_places[place] for place in places}
    legend = [Key(f"{names[place]}: {counts[place]}", greys[place], True) for place in places]
    return Panel(page, f"pruned: {counts.total()} of {view.rows * view.cols} {fate.unit}", legend)


def _grey(share: float) -> Colour:
    """Of what was pruned: from the first place, 0, to the last, 1."""
    return mixed((240, 240, 240), (136, 136, 136), share)


def _merged_panel(view: View, fate: Fate, width: float, height: float) -> Panel:
    """Each token in its mean colour; the largest are framed, and numbered wherever they are."""
    grid, light = (view.rows, view.cols), np.asarray(view.image).mean() > 140
    holders = [None if token is None or fate.holder[token] < 0 else fate.holder[token] for token in view.tokens]
    means = _mean_colours(fate)
    page = drawing.mosaic([means.get(at) for at in holders], *grid, width, height)
    gone = [GONE if at is None else None for at in holders]
    page.place(drawing.hatched(gone, *grid, width, height), 0, 0)
    sides = width / view.cols, height / view.rows
    thin = drawing.borders(holders, *grid, width, height)
    page.shapes.append(Strokes(0, 0, thin, INK if light else PAPER, 0.75 if min(sides) >= LARGE else 0.5))
    sizes = Counter(at for at in holders if at is not None)
    largest = [(holder, count) for holder, count in sizes.most_common(len(LARGEST)) if count > 1]
    for number, (holder, _) in enumerate(largest):
        cells = {divmod(at, view.cols) for at, other in enumerate(holders) if other == holder}
        page.shapes += _numbered(number, cells, *sides)
    title, said = _left(fate, sizes)
    counts = [Key(f"{number}: {count}", LARGEST[number - 1]) for number, (_, count) in enumerate(largest, start=1)]
    return Panel(
        page,
        title,
        [*([Key(said)] if said else []), *counts, *([Key("pruned", GONE, True)] if None in holders else [])],
    )


def _numbered(number: int, cells: set[tuple[int, int]], across: float, down: float) -> list[Shape]:
    """A large token: framed, with its number in each cell or, where cells are too small for that, filled."""
    colour = LARGEST[number]
    if min(across, down) < LARGE:
        return [Box(col * across, row * down, across, down, colour) for row, col in sorted(cells)]
    shapes = drawing.edging(cells, across, down, 3, colour)
    for row, col in sorted(cells):
        shapes += drawing.numbered(number + 1, (col + 0.5) * across, (row + 0.5) * down, colour)
    return shapes


def _left(fate: Fate, sizes: Counter[int]) -> tuple[str, str]:
    """Title and first entry of the legend of the tokens that are left, by the number of cells that each holds."""
    slots, held = len(sizes), sizes.total()
    merged = f" merged into {slots}" if slots < held else ""
    if fate.unit == "tokens":
        return f"left: {slots} tokens", f"{held}{merged}" if merged else ""
    kind, counts = next(iter(fate.kinds.items()))
    beside = "[CLS], " if counts[-1] == slots + 1 else ""
    return f"{kind}: {counts[0]} -> {counts[-1]}", f"{beside}{held} patches{merged}"


def _mean_colours(fate: Fate) -> dict[int | None, Colour]:
    """Of each token that is left the mean colour of its patches, in whatever view."""
    members = defaultdict(list)
    for view in fate.views:
        means = np.asarray(view.image.resize((view.cols, view.rows), Image.Resampling.BOX)).reshape(-1, 3)
        for token, mean in zip(view.tokens, means, strict=True):
            if token is not None:
                members[fate.holder[token]].append(mean)
    mixed = {token: np.mean(colours, axis=0).round().astype(int).tolist() for token, colours in members.items()}
    return {token: (red, green, blue) for token, (red, green, blue) in mixed.items() if token >= 0}


def scores_of(view: View, fate: Fate, places: Sequence[Place], scores: Saliency, sample: int) -> list[Page]:
    """A view's scores at all places, four side by side, with one legend."""
    maps = maps_of(view, fate, places, scores, sample)
    if not maps:
        return []
    shown = [drawing.panel(each.content, each.title) for each in maps]
    rows = [drawing.beside(shown[start : start + 4]) for start in range(0, len(shown), 4)]
    return [drawing.panel(drawing.stacked(rows), f"what each layer keeps of the {view.title}, by score", SCORES)]


def maps_of(view: View, fate: Fate, places: Sequence[Place], scores: Saliency, sample: int) -> list[Panel]:
    """A view's scores at each place that scored: the highest dark, the lowest pale, what was gone white."""
    panels = []
    width = (WIDTH - 2 * MARGIN - 3 * GAP) / 4
    height = min(width * view.image.height / view.image.width, 2 * width)
    for place, name in zip(places, fate.places, strict=True):
        if place not in scores:
            continue
        values = [float("nan") if token is None else float(scores[place][sample, token]) for token in view.tokens]
        ordered = sorted({value for value in values if isfinite(value)})
        shares = {value: rank / max(len(ordered) - 1, 1) for rank, value in enumerate(ordered)}
        colours = [mixed(LOW, HIGH, shares[value]) if value in shares else PAPER for value in values]
        content = drawing.mosaic(colours, view.rows, view.cols, width, height)
        panels.append(Panel(content, name, SCORES))
    return panels
