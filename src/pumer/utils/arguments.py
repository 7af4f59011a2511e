"""Checks of what a user gives, made before anything takes long: numbers, and places to write to."""

import dataclasses
import shutil
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from pumer.utils.errors import InputError

MOST = 10**9
PREPARED = "prepared.json"
"""The record in a folder that `pumer data prepare` wrote."""
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),  # what NumPy takes; torch takes more
    "workers": (0, 1024),
    "threads": (1, 1024),
    "jobs": (1, 1024),
    "batch": (1, 65_536),
    "batch_size": (1, 65_536),
    "batch_sizes": (1, 65_536),
    "largest_batch": (1, 65_536),
    "memory_batch": (0, 65_536),
    "accumulate": (1, 65_536),
    "image_size": (1, 16_384),
    "edge": (1, 16_384),
    "resize": (1, 16_384),
    "text_length": (2, 65_536),
    "limit": (1, MOST),
    "eval_limit": (1, MOST),
    "min_answer_count": (1, MOST),
    "speed_images": (1, MOST),
    "questions": (1, MOST),
    "train": (0, 10**7),
    "val": (0, 10**7),
    "test": (0, 10**7),
    "heldout": (0, 10**7),
    "questions_per_image": (1, 1000),
    "epochs": (1, MOST),
    "max_steps": (1, MOST),
    "patience": (1, MOST),
    "eval_steps": (1, MOST),
    "log_steps": (1, MOST),
    "keep": (1, MOST),
    "seeds": (1, 1000),
    "pairs": (1, 10**6),
    "seconds": (0, 10**6),
    "search_seconds": (0, 10**6),
    "minutes": (0.001, 10**6),
    "save_minutes": (0, 10**6),
    "layers": (1, 1024),
    "patches": (1, 16_384),
    **dict.fromkeys(("grow_at", "full_at", "fall_at", "reduce_at", "ground_at", "tasks"), (0, 1)),
}
"""What a setting of that name may be, in every command: one name, one meaning."""


def in_range(config: Any, prefix: str = "") -> None:
    """Refuse numbers in a config that lie outside of RANGES; whatever is no number is passed over.

    Args:
        config: a dataclass.
        prefix: of its settings' names, such as "data.".

    Raises:
        InputError: naming the setting, its value and the range.
    """
    for field in dataclasses.fields(config):
        if field.name in RANGES:
            value = getattr(config, field.name)
            least, most = RANGES[field.name]
            for number in value if isinstance(value, list | tuple) else (value,):
                if isinstance(number, int | float) and not least <= number <= most:
                    raise InputError(f"{prefix}{field.name} must lie in [{least}, {most}], not {number}")


def there(what: str, path: Path | None) -> None:
    """Refuse a file or folder that does not exist; None is passed over, and so is what a prepared folder may hold.

    Raises:
        InputError: with what it is and its name.
    """
    if path is not None and not path.exists() and not any((up / PREPARED).is_file() for up in path.absolute().parents):
        raise InputError(f"{what} {path} does not exist")


def new_files(*files: Path | None, force: bool = False, inputs: Iterable[Path | None] = ()) -> None:
    """Refuse result files that could not be written, or that would take the place of something.

    Args:
        *files: what a command is going to write; None is passed over.
        force: whether files that are there may be replaced.
        inputs: what it reads, which is never replaced.

    Raises:
        InputError: naming the file.
    """
    given = [file for file in files if file is not None]
    read = {file.resolve() for file in inputs if file is not None}
    for number, file in enumerate(given):
        if file.resolve() in read:
            raise InputError(f"{file} is read, and would be overwritten; give another name to write to")
        if file.resolve() in {other.resolve() for other in given[:number]}:
            raise InputError(f"{file} is given for two results; give each a file of its own")
        writable(file)
        if file.exists() and not force:
            raise InputError(f"{file} exists already; give another name, or --force to replace it")


def writable(*files: Path | None) -> None:
    """Refuse files that could not be written at the end of a run.

    Raises:
        InputError: for a folder, and for a file that lies in no folder or in one that is protected.
    """
    for file in files:
        if file is None:
            continue
        if file.is_dir():
            raise InputError(f"{file} is a folder; give the name of a file to write")
        _try_to_write(file, file.absolute().parent)


def writable_folders(*folders: Path | None) -> None:
    """Refuse folders that could not be made or written to.

    Raises:
        InputError: for a file, and for a folder that lies in a file or in a folder that is protected.
    """
    for folder in folders:
        if folder is not None:
            _try_to_write(folder, folder.absolute())


def room_for(needed: int, folder: Path, name: str, remedy: str) -> None:
    """Refuse to make a file that a disk cannot hold: writing to a mapped one would end the process without a word.

    Args:
        needed: bytes.
        folder: where the file is going to lie; it is there.
        name: of what needs them.
        remedy: what to do.

    Raises:
        InputError: with both figures.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{name} needs {needed / 2**30:.1f} GiB in {folder}, which has {free / 2**30:.1f} left; {remedy}"
        )


def _try_to_write(name: Path, place: Path) -> None:
    """Make a file without a name in a folder, or in the first of its parents that is there."""
    folder = next(there for there in (place, *place.parents) if there.exists())
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"{name} cannot be written, for {folder} is not writable ({error.strerror}); give another name"
        ) from error
