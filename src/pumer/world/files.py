"""Shared by the writers of the world's data sets: whole folders, images, JSON files."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from pumer.utils.errors import InputError
from pumer.world.scenes import COLOURS, SHAPES, SIZES, TEXTURES, Object, Scene, render

SIDECAR = "scenes.json"
"""File with the objects of every image, which no official format has room for; it marks a folder as a world."""


@contextmanager
def whole(root: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `root` at the end: `root` is either whole or absent.

    Raises:
        InputError: `root` holds something that is not a world.
    """
    if root.exists() and any(root.iterdir()) and not (root / SIDECAR).exists():
        raise InputError(f"{root} holds files that are no world: give an empty or new folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    before = aside.with_name(f"{aside.name}-before")
    try:
        yield aside
        aside.chmod(0o755)
        if root.exists():
            root.rename(before)
        aside.rename(root)
    finally:
        if before.exists() and not root.exists():  # interrupted between the two
            before.rename(root)
        for folder in (aside, before):
            shutil.rmtree(folder, ignore_errors=True)


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
