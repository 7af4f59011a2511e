"""Where the image tokens of a prompt stand: in which image, in which of its tiles, in which row and column of that.

The ids of a prompt do not show it. It follows from what the vision encoder is called with, and `generate` calls that
before the forward: what it was called with is then noted on its output. Where nothing is noted, or the numbers of
tokens do not add up, nothing is claimed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches
from transformers.utils import ModelOutput

NOTE = "pumer_images"
"""The attribute of an encoder's output that holds the layout of what it encoded."""
_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


@dataclass(frozen=True)
class Tile:
    """A grid of tokens, row by row.

    Attributes:
        rows: Of tokens.
        columns: Of tokens.
        shows: The whole image, one of several equal parts of it (row by row), or a frame of a video.
        row_ends: Whether a token that is no part of the image follows each row.
        ends: How many such tokens follow the last row.
    """

    rows: int
    columns: int
    shows: Literal["image", "part", "frame"] = "image"
    row_ends: bool = False
    ends: int = 0

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.rows * (self.columns + self.row_ends) + self.ends

    def cells(self) -> list[tuple[int, int]]:
        """Row and column of each token; -1 of those that are no part of the image."""
        end = [(-1, -1)]
        rows = [[(row, column) for column in range(self.columns)] + end * self.row_ends for row in range(self.rows)]
        return [cell for row in rows for cell in row] + end * self.ends


Tiles = tuple[Tile, ...]
"""Those of one image, or the frames of one video, in the order of the prompt."""


@dataclass(frozen=True, eq=False)
class Grids:
    """The image tokens of a batch of prompts.

    Attributes:
        cells: ``(B, N, 4)`` int64: number of the image in its prompt, number of the tile in its image, row and column
            in the tile. All are -1 for text; row and column are -1 for tokens that end a row or an image.
        images: The images of each prompt; None if nobody knows, and then all cells are -1.
    """

    cells: Tensor
    images: tuple[tuple[Tiles, ...], ...] | None


def note(model: Any, kind: Literal["image", "video"], output: Any, given: Mapping[str, Any]) -> None:
    """Leave the layout of what was encoded on an encoder's output, for the forward that gets it.

    Args:
        model: The model of images and text.
        kind: What was encoded.
        output: What the encoder gave.
        given: What it was called with, by name.
    """
    if isinstance(output, ModelOutput):
        setattr(output, NOTE, _layout(model, kind, given))


def grids_of(model: Any, image: Tensor, inputs: Mapping[str, Any]) -> Grids:
    """Where the image tokens of a forward stand.

    Args:
        model: The model of images and text.
        image: ``(B, N)`` bool, which tokens are those of images or videos.
        inputs: What the forward was called with, by name.
    """
    image, ids = image.cpu(), inputs.get("input_ids")
    found = {kind: getattr(output, NOTE, None) for kind, output in (inputs.get("mm_encoder_outputs") or {}).items()}
    found |= {kind: _layout(model, kind, inputs) for kind, name in _PIXELS.items() if inputs.get(name) is not None}
    dealt = [_dealt(tiles, mask) for tiles, mask in zip(found.values(), _masks(model, list(found), image, ids))]
    cells, images = torch.full((*image.shape, 4), -1), []
    if len(dealt) != len(found) or None in dealt or not dealt:
        return Grids(cells, None)
    for sample, parts in enumerate(zip(*dealt, strict=True)):
        own = _joined(model, sorted(part for of_kind in parts for part in of_kind), None if ids is None else ids[sample])
        if own is None:
            return Grids(torch.full_like(cells, -1), None)
        for number, (places, tiles) in enumerate(own):
            values = [(number, rank, *cell) for rank, tile in enumerate(tiles) for cell in tile.cells()]
            cells[sample, places] = torch.tensor(values)
        images.append(tuple(tiles for _, tiles in own))
    return Grids(cells, tuple(images))
