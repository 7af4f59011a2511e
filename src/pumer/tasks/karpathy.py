"""Images with their captions in Karpathy's JSON files, which split Flickr30k and COCO for retrieval."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pumer.tasks.records import hold, listed, once
from pumer.utils.errors import InputError

RESTVAL = "restval"
"""COCO's validation images that are in neither split; usually joined to the training images."""
SPLITS = ("train", "val", "test", RESTVAL)
_FIELDS: dict[str, type] = {"filename": str, "imgid": int, "split": str, "sentences": list}


@dataclass(frozen=True, slots=True)
class Picture:
    """One image with its captions.

    Attributes:
        id: official number (`imgid`), unique in its file.
        path: the image file, whether or not it is there.
        captions: official number (`sentid`) and text of each caption; five in Flickr30k, five or more in COCO.
    """

    id: int
    path: Path
    captions: tuple[tuple[int, str], ...]


def read_pictures(path: Path, images: str, split: str) -> list[Picture]:
    """The images of one split, in file order.

    Args:
        path: the JSON file; the image folders lie beside it.
        images: folder of the image files, for entries that do not name their own (`filepath`).
        split: "train", "val", "test" or "restval", or several of them joined by "+", as in "train+restval".

    Raises:
        InputError: for a missing or broken file, an unknown split, and an image without captions; the message names it.
    """
    wanted = tuple(split.split("+"))
    if unknown := [name for name in wanted if name not in SPLITS]:
        allowed = ", ".join(SPLITS)
        raise InputError(f"split must be one of {allowed}, or several joined by '+', not '{unknown[0]}'")
    return [_picture(entry, path.parent, images) for entry in _entries(path, images) if entry["split"] in wanted]


def _picture(entry: Mapping[str, Any], root: Path, images: str) -> Picture:
    captions = tuple((caption["sentid"], caption["raw"].strip()) for caption in entry["sentences"])
    return Picture(entry["imgid"], root / entry.get("filepath", images) / entry["filename"], captions)


def _entries(path: Path, images: str) -> list[dict[str, Any]]:
    """The file's images, each checked to hold what is needed, and to have numbers of its own."""
    entries = [
        _checked(hold(entry, _FIELDS, f"{path}: entry {index} of 'images'"), path, images)
        for index, entry in enumerate(listed(path, "images", f"the official {path.name}"))
    ]
    once(path, "imgid", (entry["imgid"] for entry in entries))
    once(path, "sentid", (caption["sentid"] for entry in entries for caption in entry["sentences"]))
    return entries


def _checked(entry: dict[str, Any], path: Path, images: str) -> dict[str, Any]:
    name = entry["filename"]
    if not isinstance(entry.get("filepath", images), str):
        raise InputError(f"{path}: 'filepath' of image {name} must be text, not {entry['filepath']!r}")
    if not entry["sentences"]:
        raise InputError(f"{path}: image {name} has no captions")
    for caption in entry["sentences"]:
        hold(caption, {"raw": str, "sentid": int}, f"{path}: a caption of image {name}")
    return entry
