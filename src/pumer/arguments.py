"""Checks of settings that several jobs share, made before anything takes long."""

import shutil
from pathlib import Path
from tempfile import TemporaryFile

from pumer.errors import InputError


def at_least(minimum: int, **settings: int | None) -> None:
    """Refuse settings below a minimum; null is passed over.

    Raises:
        InputError: naming the setting and its value.
    """
    for name, value in settings.items():
        if value is not None and value < minimum:
            raise InputError(f"{name} must be at least {minimum}, not {value}")


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


def writable_folders(*folders: Path) -> None:
    """Refuse folders that could not be made or written to.

    Raises:
        InputError: for a file, and for a folder that lies in a file or in a folder that is protected.
    """
    for folder in folders:
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
            f"{name} cannot be written, for {folder} is no folder to write to ({error.strerror}); give another name"
        ) from error
