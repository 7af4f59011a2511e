"""Folders made by `pumer data prepare`: the official annotation files, and all images in a few Arrow files.

An image in it goes by the path it had in the download, `FOLDER/val2014/COCO_val2014_000000000042.jpg`, although
there is no such file: readers make the same examples from both, and `pumer.data.images` finds the bytes.

Files of a prepared folder::

    prepared.json               the task and the settings it was made with, and how much it holds
    skipped.csv                 images that are missing or broken, with the reason
    arrow/00000-of-00012.arrow  columns `name`, `image` (`bytes`, as datasets stores images) and, without it, `problem`
    ...                         the task's annotation files, as downloaded
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from pumer.utils.errors import InputError
from pumer.utils.files import first_line, read_config
from pumer.utils.places import PREPARED

RECORD = PREPARED
SKIPPED = "skipped.csv"
SHARDS = "arrow"


class Storage:
    """The images of one prepared folder, memory-mapped.

    Attributes:
        root: the folder.
        folders: of every image folder, by its path below `root`, the images with their problem, or None.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        record = read_config(root / RECORD, "prepare the folder again")
        if not isinstance(record.get("complete"), bool) or not isinstance(record.get("shards"), int):
            raise InputError(f"{root / RECORD} has no 'complete' (bool) or no 'shards' (int); prepare the folder again")
        if not record["complete"]:
            raise InputError(f"{root} is prepared only in part; run the same `pumer data prepare` again to complete it")
        shards = sorted((root / SHARDS).glob("*.arrow"))
        if len(shards) != record["shards"]:
            raise InputError(f"{root / SHARDS} holds {len(shards)} of {record['shards']} files; prepare it again")
        self._places: dict[str, tuple[Any, int]] = {}
        self.folders: dict[str, dict[str, str | None]] = defaultdict(dict)
        for path in shards:
            names, images, problems = open_shard(path)
            for row, (name, problem) in enumerate(zip(names, problems, strict=True)):
                self._places[name] = images, row
                self.folders[str(PurePosixPath(name).parent)][PurePosixPath(name).name] = problem

    def image(self, name: str) -> bytes:
        """The content of an image, by its path below `root` with slashes; an error gives the reason alone."""
        place = PurePosixPath(name)
        problem = self.folders.get(str(place.parent), {}).get(place.name, "does not exist")
        if problem is not None:
            raise InputError(problem)
        images, row = self._places[name]
        content: bytes = images[row]["bytes"].as_py()
        return content


def open_shard(path: Path) -> tuple[list[str], Any, list[str | None]]:
    """Names, images (an Arrow column, memory-mapped) and problems of one Arrow file."""
    from datasets import Dataset  # half a second that only prepared folders cost

    try:
        table = Dataset.from_file(str(path)).data
        table.validate(full=True)  # Arrow reads wherever offsets point to, and ends the process; images are not read
        names = table.column("name").to_pylist()
        if not all(isinstance(name, str) for name in names):
            raise ValueError("an image has no name")
        return names, table.column("image"), table.column("problem").to_pylist()
    except (OSError, ValueError, KeyError) as error:  # KeyError: a column is missing
        raise InputError(f"{path} is broken ({first_line(error)}); remove it and prepare the folder again") from error


def storage_of(path: Path) -> Storage | None:
    """The prepared folder that a path lies in, if it lies in one."""
    try:
        root = next((folder for folder in path.parents if (folder / RECORD).is_file()), None)
    except OSError as error:
        raise InputError(f"{path} cannot be looked for ({error.strerror}); allow reading its folders") from error
    return None if root is None else _opened(root)


_opened = lru_cache(maxsize=16)(Storage)


def images_in(folder: Path) -> dict[str, str | None]:
    """The files of an image folder by name, each with its problem if a prepared folder had to skip it."""
    try:
        if folder.is_dir():
            return dict.fromkeys(os.listdir(folder))
    except OSError as error:
        raise InputError(f"image folder {folder} cannot be listed ({error.strerror}); allow reading it") from error
    storage = storage_of(folder / "image")
    return {} if storage is None else storage.folders.get(folder.relative_to(storage.root).as_posix(), {})


def missing_images(paths: Iterable[Path]) -> dict[Path, str]:
    """The images that are not there, in the order given, each with the reason; files are not opened."""
    folders: dict[Path, dict[str, str | None]] = {}
    missing: dict[Path, str] = {}
    for path in paths:
        if path.parent not in folders:
            folders[path.parent] = images_in(path.parent)
        problem = folders[path.parent].get(path.name, "does not exist")
        if problem is not None:
            missing[path] = problem
    return missing
