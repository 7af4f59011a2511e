"""What every patch of a scene's image shows."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pumer.world import scenes, sentences

DENSE = {"shape": len(scenes.SHAPES), "colour": len(scenes.COLOURS), "size": len(scenes.SIZES)}
DENSE |= {"texture": len(scenes.TEXTURES), "position": len(sentences.POSITIONS), "centre": 1}
"""Values of every per-patch label; each has one more, 0, for "none"."""


@lru_cache(maxsize=65536)
def _cover(shape: int, side: int, x: int, y: int, patch: int) -> np.ndarray:
    """Patches of which the shape fills at least a quarter, from the patch that holds (0, 0) of the square."""
    rows, columns = -(-(y + side) // patch), -(-(x + side) // patch)
    canvas = np.zeros((rows * patch, columns * patch), np.int64)
    canvas[y : y + side, x : x + side] = scenes.shape_mask(shape, side)
    return canvas.reshape(rows, patch, columns, patch).sum((1, 3)) * 4 >= patch * patch


def patch_objects(scene: scenes.Scene, patch: int = 8) -> np.ndarray:
    """Which object each patch shows.

    Args:
        scene: the scene.
        patch: side of a patch in pixels.

    Returns:
        (rows, columns) int8: index of the object that fills at least a quarter of the patch, -1 for background.
    """
    side = scene.config.image_size // patch
    owner = np.full((side, side), -1, np.int8)
    for index, item in enumerate(scene.objects):
        cover = _cover(item.shape, item.side, item.x % patch, item.y % patch, patch)
        row, column = item.y // patch, item.x // patch
        view = owner[row : row + cover.shape[0], column : column + cover.shape[1]]
        view[cover] = index
        centre_x, centre_y = item.centre
        owner[centre_y // 2 // patch, centre_x // 2 // patch] = index
    return owner


def dense_labels(scene: scenes.Scene, owner: np.ndarray) -> np.ndarray:
    """What every patch shows.

    Args:
        scene: the scene.
        owner: (P,) the object of each patch or -1, see `patch_objects`.

    Returns:
        (P, 6) labels in the order of DENSE; 0 is background.
    """
    table = [
        (o.shape, o.colour, o.size, o.texture, sentences.POSITIONS.index(sentences.position(scene, o)), -1)
        for o in scene.objects
    ]
    labels = np.vstack([np.array(table) + 1, np.zeros((1, len(DENSE)), np.int64)])[owner]
    for item in scene.objects:
        x, y = (centre // 16 for centre in item.centre)
        labels[y * 12 + x, -1] = 1
    return labels
