"""Shared by the writers of the world's data sets: whole folders, images, JSON files."""

from __future__ import annotations

import io
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from PIL import Image

from pumer.utils.errors import InputError
from pumer.utils.files import replacing
from pumer.world.scenes import COLOURS, SHAPES, SIZES, TEXTURES, Object, Scene, render

SIDECAR = "scenes.json"
"""File with the objects of every image, which no official format has room for; it marks a folder as a world."""


def whole(root: Path) -> AbstractContextManager[Path]:
    """A folder to write into, which takes the place of `root` at the end: `root` is either whole or absent.

    Raises:
        InputError: `root` holds something that is not a world.
    """
    if root.exists() and any(root.iterdir()) and not (root / SIDECAR).exists():
        raise InputError(f"{root} holds files that are no world: give an empty or new folder")
    return replacing(root, whole=True)


def save_scene(scene: Scene, path: Path) -> dict[str, Any]:
    """Write the image of a scene, .png or .jpg at a quality that keeps every texture; returns its sidecar entry."""
    content, image = io.BytesIO(), Image.fromarray(render(scene))
    if path.suffix == ".png":
        image.save(content, "png", compress_level=1)
    else:
        image.save(content, "jpeg", quality=95, subsampling=0)
    path.write_bytes(content.getvalue())
    return {"objects": [_entry(item) for item in scene.objects]}


def _entry(item: Object) -> dict[str, Any]:
    return {
        "shape": SHAPES[item.shape],
        "color": COLOURS[item.colour],
        "size": SIZES[item.size],
        "texture": TEXTURES[item.texture],
        "box": list(item.box),
    }


def dump(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(value))


def dump_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    """Write a file of JSON lines."""
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[0].upper() + text[1:]
