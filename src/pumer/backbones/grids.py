"""Where the image tokens of a prompt stand: in which image, in which of its tiles, in which row and column of that.

The ids of a prompt do not show it. It follows from what the vision encoder is called with, and `generate` calls that
before the forward: what it was called with is then noted on its output. Where nothing is noted, or the numbers of
tokens do not add up, nothing is claimed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise
from math import ceil
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches
from transformers.utils import ModelOutput

NOTE = "pumer_images"
"""The attribute of an encoder's output that holds the layout of what it encoded."""
PLACED = "pumer_grids"
"""The attribute of an encoder's output that holds where each token of shortened prompts stands."""
Kind = Literal["image", "video"]
PIXELS: dict[Kind, str] = {"image": "pixel_values", "video": "pixel_values_videos"}


def placeholders(config: Any) -> dict[Kind, int]:
    """The ids that take the places of image and video tokens in the prompts of a model of images and text."""
    ids = {kind: getattr(config, f"{kind}_token_id", None) for kind in PIXELS}
    return {kind: token for kind, token in ids.items() if token is not None}


@dataclass(frozen=True)
class Tile:
    """A grid of tokens, row by row.

    Attributes:
        rows: Of tokens.
        columns: Of tokens.
        shows: The whole image, one of several equal parts of it (row by row), or a frame of a video.
        row_ends: Whether a token that is no part of the image follows each row.
        ends: How many such tokens follow the last row.
        across: Of a part, how many of them stand side by side; None if the prompt does not show it.
    """

    rows: int
    columns: int
    shows: Literal["image", "part", "frame"] = "image"
    row_ends: bool = False
    ends: int = 0
    across: int | None = None

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
        merged: Of prompts in which tokens were merged before the decoder: ``(B, M, 4)``, the cells of the tokens that
            there were, and ``(B, M)`` int64, which of the N tokens each was merged into, -1 for the others.
    """

    cells: Tensor
    images: tuple[tuple[Tiles, ...], ...] | None
    merged: tuple[Tensor, Tensor] | None = None


def note(model: Any, kind: Kind, output: Any, given: Mapping[str, Any]) -> None:
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
    outputs = inputs.get("mm_encoder_outputs") or {}
    for output in outputs.values() if isinstance(outputs, Mapping) else ():
        placed: Grids | None = getattr(output, PLACED, None)
        if placed is not None and len(image) % len(placed.cells) == 0 and placed.cells.shape[1] == image.shape[1]:
            copies = len(image) // len(placed.cells)  # of beams
            known = placed.images and tuple(prompt for prompt in placed.images for _ in range(copies))
            cells, *merged = (x.repeat_interleave(copies, dim=0) for x in (placed.cells, *(placed.merged or ())))
            return Grids(cells, known, (merged[0], merged[1]) if merged else None)
    ids = inputs.get("input_ids")
    image, ids = image.cpu(), None if ids is None else ids.cpu()
    cells = torch.full((*image.shape, 4), -1)
    prompts = _prompts(model, image, ids, inputs)
    if prompts is None:
        return Grids(cells, None)
    for row, prompt in zip(cells, prompts, strict=True):
        for number, (places, tiles) in enumerate(prompt):
            values = [(number, rank, *cell) for rank, tile in enumerate(tiles) for cell in tile.cells()]
            row[places] = torch.tensor(values)
    return Grids(cells, tuple(tuple(tiles for _, tiles in prompt) for prompt in prompts))


_Placed = tuple[list[int], Tiles]
"""The places of an image's tokens in the prompt, and its tiles."""


def _prompts(model: Any, image: Tensor, ids: Tensor | None, inputs: Mapping[str, Any]) -> list[list[_Placed]] | None:
    """The images of each prompt, in order."""
    encoded = inputs.get("mm_encoder_outputs") or {}
    found: dict[str, Any] = {kind: getattr(output, NOTE, None) for kind, output in encoded.items()}
    found |= {kind: _layout(model, kind, inputs) for kind, name in PIXELS.items() if inputs.get(name) is not None}
    masks = {kind: image for kind in found}
    if len(found) > 1:
        if ids is None:
            return None
        video = ids == placeholders(model.config)["video"]
        masks = {"image": image & ~video, "video": image & video}
    dealt = [_dealt(tiles, masks[kind]) for kind, tiles in found.items()]
    prompts: list[list[_Placed]] = []
    for sample, parts in enumerate(zip(*dealt, strict=True) if dealt and None not in dealt else ()):
        placed = sorted(part for of_kind in parts for part in of_kind)
        joined = _joined(model.config.model_type, placed, None if ids is None else ids[sample].tolist())
        if joined is None:
            return None
        prompts.append(joined)
    return prompts or None


def _dealt(images: Sequence[Tiles] | None, mask: Tensor) -> list[list[_Placed]] | None:
    """Deal the places of a mask ``(B, N)`` out to images; None where they do not fit."""
    counts, wanted = int(mask.sum()), sum(tile.tokens for tiles in images or () for tile in tiles)
    copies = counts // wanted if wanted else 0  # each prompt stands there once for each beam
    if images is None or copies == 0 or counts != copies * wanted or len(mask) % copies:
        return None
    rest, prompts = list(images), []
    for row in mask[::copies]:
        places, prompt = row.nonzero()[:, 0].tolist(), []
        while places:
            if not rest:
                return None
            size = sum(tile.tokens for tile in rest[0])
            if size > len(places):
                return None  # an image goes on in the next prompt
            prompt.append((places[:size], rest.pop(0)))
            places = places[size:]
        prompts += [prompt] * copies
    return prompts


def _joined(kind: str, placed: list[_Placed], ids: Sequence[int] | None) -> list[_Placed] | None:
    """Join the tiles of one image, where an encoder gets nothing but tiles; the last of several shows all of it."""
    if kind not in ("internvl", "idefics3", "smolvlm") or not placed:
        return placed
    if kind == "internvl":  # an image is one run of placeholders
        last = [places[-1] + 1 != following[0] for (places, _), (following, _) in pairwise(placed)]
    elif ids is None:
        return None
    else:  # the id before a tile names its row and column, or that it shows all, which the last one does
        marks = [ids[places[0] - 1] for places, _ in placed]
        last = [mark == marks[-1] for mark in marks[:-1]]
    joined: list[list[_Placed]] = [[]]
    for part, end in zip(placed, [*last, True], strict=True):
        joined[-1].append(part)
        if end:
            joined.append([])
    across = [None if kind == "internvl" else _across(parts[:-1]) for parts in joined[:-1]]
    if kind != "internvl" and None in across:
        return None
    return [_one(parts, columns) for parts, columns in zip(joined, across, strict=False)]


def _across(parts: Sequence[_Placed]) -> int | None:
    """How many parts are in a row of an image: two ids stand between neighbours, and more between rows."""
    ends = [following[0] - places[-1] > 3 for (places, _), (following, _) in pairwise(parts)]
    across = [*ends, True].index(True) + 1
    regular = len(parts) % across == 0 and all(end == (at % across == 0) for at, end in enumerate(ends, start=1))
    return across if regular else None


def _one(parts: Sequence[_Placed], across: int | None) -> _Placed:
    """Tiles as one image: the last one shows all of it, those before show parts."""
    *tiles, whole = chain.from_iterable(tiles for _, tiles in parts)
    places = list(chain.from_iterable(places for places, _ in parts))
    return places, (*(replace(tile, shows="part", across=across) for tile in tiles), whole)


# What an encoder makes of its arguments


def _layout(model: Any, kind: str, given: Mapping[str, Any]) -> tuple[Tiles, ...] | None:
    """The images, or videos, that an encoder is called with, in the order of their tokens; None if nobody knows.

    Of a model whose encoder gets nothing but tiles, each is one.
    """
    layout = _LAYOUTS.get(model.config.model_type, {}).get(kind)
    return None if layout is None else layout(model, {name: x for name, x in given.items() if x is not None})


def _patches(model: Any) -> tuple[int, int]:
    """Height and width of a patch in pixels."""
    size = model.config.vision_config.patch_size
    return (size, size) if isinstance(size, int) else tuple(size)


def _thw(kind: str, model: Any, given: Mapping[str, Any]) -> tuple[Tiles, ...]:
    """Qwen-VL and GLM-V: frames, rows and columns of patches, some of which are one token."""
    merge = model.config.vision_config.spatial_merge_size
    shows: Any = {"image": "image", "video": "frame"}[kind]
    grids = given[f"{kind}_grid_thw"].tolist()
    return tuple((Tile(rows // merge, columns // merge, shows),) * frames for frames, rows, columns in grids)


def _sized(model: Any, given: Mapping[str, Any]) -> tuple[Tiles, ...]:
    """Mistral 3, and LLaVA with Pixtral's encoder: images of any size; patches may be merged."""
    merge = getattr(model.config, "spatial_merge_size", 1)
    height, width = _patches(model)
    sizes = torch.as_tensor(given["image_sizes"]).tolist()
    return tuple((Tile(rows // (height * merge), columns // (width * merge)),) for rows, columns in sizes)


def _equal(model: Any, given: Mapping[str, Any]) -> tuple[Tiles, ...]:
    """LLaVA, and tiles of InternVL, Idefics3 and SmolVLM: all of one size; patches may be shuffled into channels."""
    if "image_sizes" in given:
        return _sized(model, given)
    pixels, config = given["pixel_values"], model.config
    if pixels.ndim == 5:  # those of a prompt with fewer tiles are filled up with zeros
        pixels = pixels.flatten(0, 1)
        pixels = pixels[(pixels != 0).flatten(1).any(dim=1)]
    if config.model_type == "internvl":
        shrink = round(1 / config.downsample_ratio)
    else:
        shrink = getattr(config, "scale_factor", 1)
    (height, width), (rows, columns) = _patches(model), pixels.shape[-2:]
    return ((Tile(rows // height // shrink, columns // width // shrink),),) * len(pixels)


def packing(model: Any, given: Mapping[str, Any]) -> tuple[Tensor, list[int], dict[str, Any]]:
    """How LLaVA-NeXT and LLaVA-OneVision place the tiles of images, one of which shows the whole image.

    Args:
        model: The model of images and text.
        given: What its vision encoder is called with, by name.

    Returns:
        Sizes of the images ``(n, 2)`` in pixels, the number of tiles of each (1: it is not alone in its prompt), and
        further arguments of the model's ``pack_image_features``.
    """
    config, sizes, counts = model.config, torch.as_tensor(given["image_sizes"]).cpu(), given.get("batch_num_images")
    alone = [True] * len(sizes) if counts is None else [n == 1 for n in counts.tolist() for _ in range(n)]
    side = config.vision_config.image_size
    tiles = [
        image_size_to_num_patches(size, config.image_grid_pinpoints, side) if whole else 1
        for size, whole in zip(sizes, alone, strict=True)
    ]
    if config.model_type == "llava_next":
        return sizes, tiles, {"vision_feature_select_strategy": "default"}
    return sizes, tiles, {"vision_aspect_ratio": given.get("vision_aspect_ratio", config.vision_aspect_ratio)}


def _anyres(model: Any, given: Mapping[str, Any]) -> tuple[Tiles, ...]:
    """LLaVA-NeXT and LLaVA-OneVision: the image as one tile, and larger, from tiles, without their padding."""
    side = model.config.vision_config.image_size // model.config.vision_config.patch_size
    images: list[Tiles] = []
    sizes, counts, rule = packing(model, given)
    for size, tiles in zip(sizes, counts, strict=True):
        blank = torch.zeros(tiles, side**2, 1)
        (packed,), _ = model.pack_image_features([blank], size[None], image_newline=torch.ones(1), **rule)
        rows, larger = int(packed.sum()), len(packed) - side**2
        if tiles == 1:
            images.append((Tile(side, side, ends=1),))
        else:
            images.append((Tile(side, side), Tile(rows, larger // rows - 1, row_ends=True)))
    return tuple(images)


def _pooled(model: Any, given: Mapping[str, Any]) -> tuple[Tiles, ...]:
    """Videos of LLaVA-OneVision: four neighbouring patches of a frame are one token, and one token ends the video."""
    config = model.config.vision_config
    side = ceil(config.image_size // config.patch_size / 2)
    videos, frames = given["pixel_values_videos"].shape[:2]
    frame = Tile(side, side, "frame")
    return ((*(frame,) * (frames - 1), replace(frame, ends=1)),) * videos


_Layout = Callable[[Any, Mapping[str, Any]], tuple[Tiles, ...]]
_GRID: dict[str, _Layout] = {"image": partial(_thw, "image"), "video": partial(_thw, "video")}
_LAYOUTS: dict[str, dict[str, _Layout]] = {
    "llava": {"image": _equal},
    "llava_next": {"image": _anyres},
    "llava_onevision": {"image": _anyres, "video": _pooled},
    "qwen2_vl": _GRID,
    "qwen2_5_vl": _GRID,
    "qwen3_vl": _GRID,
    "glm4v": _GRID,
    "smolvlm": {"image": _equal},
    "idefics3": {"image": _equal},
    "internvl": {"image": _equal},
    "mistral3": {"image": _sized},
}
"""By transformers' model type and what is encoded."""
