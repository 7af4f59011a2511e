"""Images with their captions in Karpathy's JSON files, which split Flickr30k and COCO for retrieval."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pumer.errors import InputError

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


def _entries(path: Path, images: str) -> Iterator[Mapping[str, Any]]:
    """The file's images, each checked to hold what is needed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give data.root=FOLDER with that file in it") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give the official file") from error
    except ValueError as error:
        raise InputError(f"{path} is broken JSON ({error}); download it again") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise InputError(f"{path} is no Karpathy file: it has no list 'images'")
    for index, entry in enumerate(content["images"]):
        for name, kind in _FIELDS.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
                raise InputError(f"{path}: entry {index} of 'images' has no '{name}' ({kind.__name__})")
        if not isinstance(entry.get("filepath", images), str):
            raise InputError(f"{path}: 'filepath' of image {entry['filename']} must be text, not {entry['filepath']!r}")
        if not entry["sentences"]:
            raise InputError(f"{path}: image {entry['filename']} has no captions")
        for caption in entry["sentences"]:
            known = isinstance(caption, dict)
            if not known or not isinstance(caption.get("raw"), str) or not isinstance(caption.get("sentid"), int):
                raise InputError(f"{path}: a caption of image {entry['filename']} has no 'raw' text or no 'sentid'")
        yield entry
