"""Scenes of the built-in world: objects and clutter on a noisy, textured background, with every box known.

A scene depends on (seed, split, index) alone, and all of its randomness is integer, so that every machine renders the
same pixels. The image is a 3 x 3 grid (POSITIONS in `sentences`): a large object fills a cell of the grid, small ones
stand in quarters of the other cells, so that objects never overlap. Free quarters may hold clutter: faded specks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

_RGB = {
    "red": (225, 40, 40),
    "green": (40, 175, 60),
    "blue": (50, 85, 235),
    "yellow": (240, 220, 50),
    "purple": (155, 50, 195),
    "orange": (250, 140, 25),
    "white": (242, 242, 242),
    "cyan": (60, 215, 225),
    "brown": (125, 75, 30),
    "pink": (250, 150, 195),
    "black": (28, 28, 28),
    "lime": (165, 240, 50),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond", "star", "moon", "frame", "hourglass")
COLOURS = tuple(_RGB)
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted", "checked", "barred")
PIXELS = np.array(list(_RGB.values()), dtype=np.int16)
"""(12, 3) RGB value of each of COLOURS."""
SPLITS = ("train", "val", "heldout", "pretrain", "test")
DATA_SETS = ("vqav2", "nlvr2", "snli_ve", "flickr30k", "coco")
FAR = 1 << 40
"""From this index on, generators are far from those of any scene."""
_PARTS = 3
_LARGE = (3, 5)
"""Fewest and most large objects in a scene."""
_NOISE = 128
"""Number of offsets at which an image may start in the noise, in either direction."""
_LARGEST = 256
"""Pixels of the longest side of an image."""


@dataclass(frozen=True)
class SceneConfig:
    """What scenes look like.

    Args:
        image_size: height and width in pixels.
        min_objects: fewest objects in a scene.
        max_objects: most objects in a scene.
        clutter: most specks in a scene.
        wide: all of SHAPES, COLOURS and TEXTURES, and counts to nine; otherwise the first six, eight and three, and
            counts to four.
    """

    image_size: int = 96
    min_objects: int = 12
    max_objects: int = 15
    clutter: int = 6
    wide: bool = False

    def __post_init__(self) -> None:
        """Refuse layouts that cannot be drawn."""
        if not (self.cell >= 16 and self.image_size <= _LARGEST):
            raise ValueError(f"image_size={self.image_size}: needs {16 * 2 * _PARTS} to {_LARGEST} pixels")
        room = _LARGE[1] + 4 * (_PARTS**2 - _LARGE[1])
        if not _LARGE[1] <= self.min_objects <= self.max_objects <= room:
            raise ValueError(
                f"min_objects={self.min_objects}, max_objects={self.max_objects}: "
                f"needs {_LARGE[1]} <= min_objects <= max_objects <= {room}"
            )
        if self.clutter < 0:
            raise ValueError(f"clutter={self.clutter}: needs 0 or more")

    @property
    def cell(self) -> int:
        """Side in pixels of the cell of a small object; a large one's is twice as long."""
        return self.image_size // (2 * _PARTS)

    @property
    def values(self) -> Mapping[str, int]:
        """How many of SHAPES, COLOURS, SIZES and TEXTURES there are, by attribute."""
        return _WIDE_VALUES if self.wide else _NARROW_VALUES

    @property
    def most(self) -> int:
        """Highest count that a sentence names."""
        return 9 if self.wide else 4

    def held_out(self, shape: int) -> int:
        """The colour, as an index, in which only the held-out split shows a shape."""
        return (3 * shape + 1) % self.values["colour"]


_NARROW_VALUES = {"size": 2, "texture": 3, "colour": 8, "shape": 6}
_WIDE_VALUES = {"size": len(SIZES), "texture": len(TEXTURES), "colour": len(COLOURS), "shape": len(SHAPES)}
NARROW, WIDE = SceneConfig(), SceneConfig(max_objects=18, clutter=8, wide=True)
"""The world's two layouts: 12 to 15 objects, and 12 to 18 with more to tell of them."""


@dataclass(frozen=True)
class Object:
    """One object: indices into SHAPES, COLOURS, SIZES and TEXTURES, its part of the 3 x 3 grid, its box in pixels."""

    shape: int
    colour: int
    size: int
    texture: int
    part: int
    x: int
    y: int
    side: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in pixels; right and bottom are exclusive."""
        return self.x, self.y, self.x + self.side, self.y + self.side

    @property
    def centre(self) -> tuple[int, int]:
        """Twice the centre's x and y in pixels (doubled so that it stays an integer)."""
        return 2 * self.x + self.side, 2 * self.y + self.side


@dataclass(frozen=True)
class Speck:
    """A piece of clutter: a faded rectangle; its colour indexes COLOURS."""

    colour: int
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Scene:
    """Everything that is in one image."""

    config: SceneConfig
    objects: tuple[Object, ...]
    clutter: tuple[Speck, ...]
    background: tuple[int, int, int]
    noise_offset: tuple[int, int]
    coarse: bytes


def generator(seed: int, split: str, index: int, data: str = "vqav2") -> np.random.Generator:
    """The random numbers of one scene, which depend on the four arguments alone.

    Args:
        seed: any.
        split: one of SPLITS.
        index: of the scene in its split.
        data: one of DATA_SETS; no two share a scene.
    """
    parts = [seed, SPLITS.index(split), index] + [DATA_SETS.index(data)] * (data != "vqav2")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(parts)))


def blocks(
    seed: int, split: str, data: str, size: int, config: SceneConfig = NARROW
) -> Iterator[tuple[list[Scene], np.random.Generator]]:
    """All scenes of a split, `size` at a time, each block with a generator of its own; never ends."""
    for block in itertools.count():
        scenes = [make_scene(generator(seed, split, block * size + index, data), config) for index in range(size)]
        yield scenes, generator(seed, split, FAR + block, data)


def make_scene(rng: np.random.Generator, config: SceneConfig | None = None, held_out: bool = False) -> Scene:
    """Draw a scene.

    Colours and shapes come from a palette of three each, so that several objects share them: one attribute seldom
    singles out an object, and counts above one are common.

    Args:
        rng: the scene's generator, see :func:`generator`.
        config: the layout; NARROW if not given.
        held_out: show held-out colour x shape combinations (at least two objects) instead of avoiding them.
    """
    config = config or NARROW
    count = int(rng.integers(config.min_objects, config.max_objects + 1))
    places, free = _places(rng, count)
    colours = rng.permutation(config.values["colour"])[:3].tolist()
    shapes = rng.permutation(config.values["shape"])[:3].tolist()
    draws = rng.integers(0, 1 << 30, size=(count, 6)).tolist()
    objects = []
    for number, (place, draw) in enumerate(zip(places, draws, strict=True)):
        shape, pick = shapes[draw[0] % 3], draw[1] % 3
        colour = colours[pick]
        if held_out and number < 2:
            colour = config.held_out(shape)
        elif not held_out and colour == config.held_out(shape):
            colour = colours[(pick + 1) % 3]
        objects.append(_object(config, shape, colour, place, draw[2:]))
    specks = rng.integers(0, 1 << 30, size=(min(config.clutter, len(free)), 5)).tolist()
    clutter = tuple(_speck(config, place, draw) for place, draw in zip(free, specks, strict=False))
    base = rng.integers(70, 111, size=3).tolist()
    offset = rng.integers(0, _NOISE, size=2).tolist()
    return Scene(config, tuple(objects), clutter, tuple(base), tuple(offset), rng.bytes(144))


_Place = tuple[int, int | None]
"""A part of the grid and a quarter of it; None for the whole part."""


def _places(rng: np.random.Generator, count: int) -> tuple[list[_Place], list[_Place]]:
    """Places of the objects, in random order, and the free quarters."""
    parts = rng.permutation(_PARTS**2).tolist()
    large = int(rng.integers(_LARGE[0], _LARGE[1] + 1))
    quarters: list[_Place] = [(part, quarter) for part in parts[large:] for quarter in range(4)]
    quarters = [quarters[index] for index in rng.permutation(len(quarters)).tolist()]
    taken: list[_Place] = [*((part, None) for part in parts[:large]), *quarters[: count - large]]
    return [taken[index] for index in rng.permutation(count).tolist()], quarters[count - large :]


def _corner(config: SceneConfig, place: _Place) -> tuple[int, int]:
    """Left and top of a place in pixels."""
    (row, column), (down, right) = divmod(place[0], _PARTS), divmod(place[1] or 0, 2)
    return (2 * column + right) * config.cell, (2 * row + down) * config.cell


def _object(config: SceneConfig, shape: int, colour: int, place: _Place, draw: list[int]) -> Object:
    size = int(place[1] is None)
    room = config.cell * (1 + size)
    side = room * 7 // 8 - draw[1] % (2 + size)
    left, top = _corner(config, place)
    x, y = left + draw[2] % (room - side + 1), top + draw[3] % (room - side + 1)
    return Object(shape, colour, size, draw[0] % config.values["texture"], place[0], x, y, side)


def _speck(config: SceneConfig, place: _Place, draw: list[int]) -> Speck:
    width, height = 2 + draw[1] % 7, 2 + draw[2] % 3
    if draw[3] % 2:
        width, height = height, width
    left, top = _corner(config, place)
    shift = draw[4] % (config.cell - 8 + 1)
    return Speck(
        draw[0] % config.values["colour"], left + shift, top + (7 * shift) % (config.cell - 8 + 1), width, height
    )


@cache
def _noise() -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(20240521))
    return rng.integers(-18, 19, size=(_NOISE + _LARGEST, _NOISE + _LARGEST, 3)).astype(np.int16)


@lru_cache(maxsize=4096)
def shape_mask(shape: int, side: int) -> np.ndarray:
    """The shape's pixels in a (side, side) square, by integer arithmetic on doubled coordinates."""
    grid = 2 * np.arange(side) + 1 - side
    x, y = grid[None, :], grid[:, None]
    name = SHAPES[shape]
    if name == "circle":
        return x * x + y * y <= side * side
    if name == "square":
        return np.broadcast_to(10 * np.maximum(abs(x), abs(y)) <= 9 * side, (side, side))
    if name == "triangle":
        return np.broadcast_to(2 * abs(x) <= y + side, (side, side))
    if name == "cross":
        return np.broadcast_to(np.minimum(abs(x), abs(y)) * 3 <= side, (side, side))
    if name == "ring":
        radius = x * x + y * y
        return (radius <= side * side) & (4 * radius >= side * side)
    if name == "star":
        return (abs(x) + abs(y) <= side) & (12 * abs(x * y) <= side * side)
    if name == "moon":
        bite = (2 * x - side) * (2 * x - side) + 4 * y * y
        return (x * x + y * y <= side * side) & (bite >= 3 * side * side)
    if name == "frame":
        edge = 10 * np.maximum(abs(x), abs(y))
        return (edge <= 9 * side) & (edge >= 5 * side)
    if name == "hourglass":
        return np.broadcast_to(abs(x) <= abs(y), (side, side))
    return np.broadcast_to(abs(x) + abs(y) <= side, (side, side))


@lru_cache(maxsize=4096)
def _sprite(shape: int, texture: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The shape's mask and, for its pixels, 0 for the full colour and 1 for the dark part of the texture."""
    mask = shape_mask(shape, side)
    y, x = np.mgrid[0:side, 0:side]
    if TEXTURES[texture] == "striped":
        dark = (y // 3) % 2 == 1
    elif TEXTURES[texture] == "dotted":
        dark = (x % 5 < 3) & (y % 5 < 3)
    elif TEXTURES[texture] == "checked":
        dark = (x // 4 + y // 4) % 2 == 1
    elif TEXTURES[texture] == "barred":
        dark = (x // 3) % 2 == 1
    else:
        dark = np.zeros_like(mask)
    return mask, dark[mask].astype(np.int64)


def render(scene: Scene) -> np.ndarray:
    """Draw a scene.

    Returns:
        (image_size, image_size, 3) uint8.
    """
    side = scene.config.image_size
    row, column = scene.noise_offset
    image = _noise()[row : row + side, column : column + side].copy()
    coarse = np.frombuffer(scene.coarse, np.uint8).reshape(12, 12).astype(np.int16) // 6 - 21
    block = -(-side // 12)
    image += coarse.repeat(block, 0).repeat(block, 1)[:side, :side, None]
    image += np.array(scene.background, np.int16)
    for speck in scene.clutter:
        region = image[speck.y : speck.y + speck.height, speck.x : speck.x + speck.width]
        region[:] = (region + PIXELS[speck.colour]) // 2
    for item in scene.objects:
        mask, dark = _sprite(item.shape, item.texture, item.side)
        paint = np.stack([PIXELS[item.colour], PIXELS[item.colour] * 3 // 8])
        region = image[item.y : item.y + item.side, item.x : item.x + item.side]
        noise = _noise()[: item.side, : item.side][mask] // 2
        region[mask] = paint[dark] + noise
    return np.asarray(np.clip(image, 0, 255), dtype=np.uint8)
