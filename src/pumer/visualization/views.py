"""One sample's part of a trace, as it is drawn: grids of image tokens on their images, and its text."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from pumer.backbones.grids import Tiles
from pumer.utils.errors import InputError
from pumer.visualization.tracing import ForwardTrace
from pumer.visualization.tracing import name as place_name

BEFORE = "before the decoder"
"""The step of methods that shorten the prompt."""


@dataclass(frozen=True)
class View:
    """A grid of image tokens.

    Attributes:
        title: What is seen.
        image: It.
        rows: Of tokens.
        cols: Of tokens.
        tokens: The input token at each cell, row by row; None where it is hidden.
    """

    title: str
    image: Image.Image
    rows: int
    cols: int
    tokens: list[int | None]


class Fate:
    """What had become of one sample's tokens after some of the reductions.

    Attributes:
        views: Its images.
        unit: What a token of an image is called.
        text: Its text tokens.
        places: Names of the places that reduced by then.
        all_places: Names of all places that reduce.
        before: How many tokens of images a method pruned or merged before the decoder.
        pruned_at: Of each input token the index of its place, or -1.
        holder: Of each input token the one that it is in by then, itself if it was not merged, or -1 if it was pruned.
        text_groups: Of each text token that shares its slot the number of its group; those of large groups are low.
        counts: By kind ("image", "text") how many real tokens entered, then how many were left after each of `steps`.
    """

    def __init__(
        self, forward: ForwardTrace, sample: int, images: Sequence[Image.Image], after: int | None = None
    ) -> None:
        """Read a sample's part of a trace.

        Args:
            forward: The run of the encoder.
            sample: Index in the batch.
            images: That it saw.
            after: How many reductions count; None: all.

        Raises:
            InputError: For a sample that is not there, other images than it has, and images of unknown layout.
        """
        batch, length = forward.mask.shape[0], forward.text_tokens
        if not -batch <= sample < batch:
            raise InputError(f"sample {sample} is not in the trace; it holds samples 0 to {batch - 1}")
        self.all_places = tuple(map(place_name, forward.places))
        self.places = self.all_places[:after]
        count = len(self.places)
        self.pruned_at: list[int] = [at if at < count else -1 for at in forward.pruned_at[sample].tolist()]
        merged_at, into = forward.merged_at[sample].tolist(), forward.merged_into[sample].tolist()
        self.holder = list(range(len(into)))
        for token in self.holder:
            while 0 <= merged_at[self.holder[token]] < count:
                self.holder[token] = into[self.holder[token]]
        self.holder = [-1 if at >= 0 else holder for at, holder in zip(self.pruned_at, self.holder, strict=True)]
        mask = forward.mask[sample].tolist()
        real = [token for token, there in enumerate(mask) if there]
        if forward.segment is None:
            self.unit, self.views = "patches", [_whole(forward, sample, images)]
            self.text = [token for token in real if token < length]
        else:
            self.unit, self.views = "tokens", _of_prompt(forward, sample, images)
            self.text = [token for token in real if forward.segment[sample, token] == 0]
        entered = [len(self.text), len(real) - len(self.text)]
        whole = sum(tile.tokens for tiles in forward.images[sample] for tile in tiles) if forward.images else entered[1]
        self.before = whole - entered[1]
        left = [entered, *([int(count[sample]) for count in counts] for counts in forward.tokens_per_place[:count])]
        left = [[entered[0], entered[1] + self.before], *left] if self.before else left
        self.counts = {kind: [each[at] for each in left] for at, kind in ((1, "image"), (0, "text"))}
        self.text_groups = {token: rank for rank, group in enumerate(self.groups(self.text)) for token in group}

    @property
    def steps(self) -> tuple[str, ...]:
        """The places, and before them what a method did before the decoder."""
        return (BEFORE, *self.places) if self.before else self.places

    @property
    def kinds(self) -> dict[str, list[int]]:
        """The counts by name, as one where words and patches were merged alike: there is no telling them apart."""
        if 0 in self.counts["text"][1:]:
            return {"image and text": [sum(each) for each in zip(*self.counts.values(), strict=True)]}
        return {f"{kind} tokens": counts for kind, counts in self.counts.items()}

    def groups(self, tokens: Iterable[int | None]) -> list[list[int]]:
        """Those of these tokens that share a slot, the largest groups first."""
        members: dict[int, list[int]] = defaultdict(list)
        for token in tokens:
            if token is not None and self.holder[token] >= 0:
                members[self.holder[token]].append(token)
        return sorted((group for group in members.values() if len(group) > 1), key=lambda group: (-len(group), group))


def _whole(forward: ForwardTrace, sample: int, images: Sequence[Image.Image]) -> View:
    if len(images) != 1:
        raise InputError(f"{len(images)} images are given, and a forward of this model sees one")
    rows, cols = forward.grid[sample].tolist()
    cells = enumerate(forward.patch_cell[sample].tolist(), start=forward.text_tokens)
    token_at = {cell: token for token, cell in cells}
    return View("image", images[0], rows, cols, [token_at.get(cell) for cell in range(rows * cols)])


def _of_prompt(forward: ForwardTrace, sample: int, images: Sequence[Image.Image]) -> list[View]:
    if forward.images is None or forward.image is None or forward.tile is None:
        raise InputError("the trace does not know where the image tokens stand; encode the images inside of the trace")
    layouts = forward.images[sample]
    if len(images) != len(layouts):
        raise InputError(f"{len(images)} images are given, and sample {sample} has {len(layouts)}")
    if any(tile.shows == "frame" for tiles in layouts for tile in tiles):
        raise InputError(f"sample {sample} has a video; only images are drawn")
    numbers = zip(*(x[sample].tolist() for x in (forward.image, forward.tile, forward.patch_cell)), strict=True)
    token_at = {each: token for token, each in enumerate(numbers)}
    for *cell, token in forward.merged_before[sample] if forward.merged_before else ():
        token_at[tuple(cell)] = token
    views = []
    for number, (image, tiles) in enumerate(zip(images, layouts, strict=True)):
        title = "image" if len(images) == 1 else f"image {number + 1}"
        parts = sum(tile.shows == "part" for tile in tiles)
        if parts:
            across = tiles[0].across or columns_of(parts, image.width / image.height)
            cells = _stitched(tiles[:parts], across)
            tokens = [token_at.get((number, *cell)) for row in cells for cell in row]
            views.append(View(f"{title}, {parts // across} x {across} tiles", image, len(cells), len(cells[0]), tokens))
        for rank, tile in list(enumerate(tiles))[parts:]:
            what = "" if len(tiles) == 1 else ", tiles" if tile.row_ends else ", overview"
            tokens = [token_at.get((number, rank, cell)) for cell in range(tile.rows * tile.columns)]
            views.append(View(title + what, image, tile.rows, tile.columns, tokens))
    return views


def columns_of(parts: int, aspect: float) -> int:
    """How many of an image's equal parts stand side by side, in the grid whose shape is nearest to the image's.

    InternVL's processor chooses its grid so, among those of several numbers of parts.

    Args:
        parts: Their number.
        aspect: Width of the image over its height.
    """
    return min((n for n in range(1, parts + 1) if parts % n == 0), key=lambda n: abs(aspect - n * n / parts))


def _stitched(tiles: Tiles, across: int) -> list[list[tuple[int, int]]]:
    """Number of the tile and raster cell in it, at each cell of equal tiles put together."""
    rows, columns = tiles[0].rows, tiles[0].columns
    return [
        [
            (row // rows * across + column // columns, row % rows * columns + column % columns)
            for column in range(across * columns)
        ]
        for row in range(len(tiles) // across * rows)
    ]
