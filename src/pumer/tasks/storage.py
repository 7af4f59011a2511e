"""Folders made by `pumer data prepare`: the official annotation files, and all images in a few Arrow files.

An image in it goes by the path it had in the download, `FOLDER/val2014/COCO_val2014_000000000042.jpg`, although
there is no such file: readers make the same examples from both, and `pumer.tasks.images` finds the bytes.

Files of a prepared folder::

    prepared.json                the task and the settings it was made with, and how much it holds
    skipped.csv                  images that are missing or broken, with the reason
    images/00000-of-00012.arrow  name, image (as bytes) and, where there is none, the problem; see `FEATURES`
    ...                          the task's annotation files, as downloaded
"""

import json
from collections.abc import Iterable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, Value, concatenate_datasets

from pumer.errors import InputError

RECORD = "prepared.json"
SKIPPED = "skipped.csv"
SHARDS = "images"
FEATURES = Features({"name": Value("string"), "image": Image(decode=False), "problem": Value("string")})


class Storage:
    """The images of one prepared folder, memory-mapped.

    Attributes:
        root: the folder.
        record: content of its `prepared.json`.
    """

    def __init__(self, root: Path) -> None:
        """Open a prepared folder.

        Raises:
            InputError: when it is not complete or its Arrow files cannot be read.
        """
        self.root = root
        self.record: dict[str, Any] = json.loads((root / RECORD).read_text(encoding="utf-8"))
        if not self.record["complete"]:
            raise InputError(f"{root} is prepared only in part; run the same `pumer data prepare` again to complete it")
        shards = sorted((root / SHARDS).glob("*.arrow"))
        if len(shards) != self.record["shards"]:
            raise InputError(f"{root / SHARDS} holds {len(shards)} of {self.record['shards']} files; prepare it again")
        self._table = concatenate_datasets([open_shard(path) for path in shards])

    @cached_property
    def problems(self) -> dict[str, str]:
        """Why an image that the annotations name is not here, by its name below `root`."""
        rows = zip(self._table["name"], self._table["problem"], strict=True)
        return {name: problem for name, problem in rows if problem is not None}

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of every image that is here, by its name below `root`."""
        return {name: row for row, name in enumerate(self._table["name"]) if name not in self.problems}

    def image(self, name: str) -> bytes:
        """The content of an image file.

        Raises:
            InputError: the reason why there is none.
        """
        if name not in self.rows:
            raise InputError(self.problems.get(name, "does not exist"))
        content: bytes = self._table[self.rows[name]]["image"]["bytes"]
        return content


def open_shard(path: Path) -> Dataset:
    """One Arrow file, memory-mapped.

    Raises:
        InputError: when it is broken.
    """
    try:
        return Dataset.from_file(str(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is broken ({error}); remove it and prepare the folder again") from error


def storage_of(path: Path) -> Storage | None:
    """The prepared folder that a path lies in, if it lies in one."""
    root = next((folder for folder in path.parents if (folder / RECORD).is_file()), None)
    return None if root is None else _opened(root)


def stored_image(path: Path) -> bytes:
    """The content of an image in a prepared folder.

    Raises:
        InputError: the reason why there is none.
    """
    storage = storage_of(path)
    if storage is None:
        raise InputError("does not exist")
    return storage.image(path.relative_to(storage.root).as_posix())


def images_in(folder: Path) -> dict[str, str | None]:
    """The files of an image folder by name, each with its problem if a prepared folder had to skip it.

    Empty for a folder that does not exist.
    """
    if folder.is_dir():
        return {path.name: None for path in folder.iterdir()}
    storage = storage_of(folder / "image")
    if storage is None:
        return {}
    inside = folder.relative_to(storage.root).as_posix()
    names = {name.rpartition("/")[2]: None for name in storage.rows if name.rpartition("/")[0] == inside}
    skipped = {name.rpartition("/")[2]: why for name, why in storage.problems.items() if name.startswith(inside + "/")}
    return names | skipped


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


@lru_cache(maxsize=16)
def _opened(root: Path) -> Storage:
    return Storage(root)
