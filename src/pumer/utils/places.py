"""Checks of files and folders that a user gives, made before anything takes long."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryFile

from pumer.utils.errors import InputError

PREPARED = "prepared.json"
"""The record in a folder that `pumer data prepare` wrote."""


def file_there(what: str, path: Path | None) -> None:
    """Refuse a file that does not exist, or is a folder; None passes, and so does what a prepared folder may hold.

    Raises:
        InputError: with what it is and its name.
    """
    if path is None or path.is_file() or any((up / PREPARED).is_file() for up in path.absolute().parents):
        return
    if path.is_dir():
        raise InputError(f"{what} {path} is a folder; give a file")
    if not path.exists():
        raise InputError(f"{what} {path} does not exist; give a file that does")


def folder_there(what: str, path: Path | None) -> None:
    """Refuse a folder that does not exist, or is a file; None passes, and so does what a prepared folder may hold.

    Raises:
        InputError: with what it is and its name.
    """
    if path is None or path.is_dir() or any((up / PREPARED).is_file() for up in path.absolute().parents):
        return
    state = "is a file, not a folder" if path.exists() else "does not exist"
    raise InputError(f"{what} {path} {state}; give a folder that is there")


def new_files(*files: Path | None, force: bool = False, inputs: Iterable[Path | None] = ()) -> None:
    """Refuse result files that could not be written, or that would replace something.

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
        if file.is_dir():
            raise InputError(f"{file} is a folder; give the name of a file to write")
        _try_to_write(file, file.absolute().parent)
        if file.exists() and not force:
            raise InputError(f"{file} exists already; give another name, or --force to replace it")


def writable_folders(*folders: Path | None) -> None:
    """Refuse folders that could not be made or written to; None is passed over.

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
        folder: where the file is going to lie; it exists.
        name: of what needs them.
        remedy: what to do.

    Raises:
        InputError: with both sizes.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{name} needs {needed / 2**30:.1f} GiB in {folder}, which has {free / 2**30:.1f} left; {remedy}"
        )


def _try_to_write(name: Path, place: Path) -> None:
    """Make a file without a name in a folder, or in the first of its parents that exists."""
    folder = next(there for there in (place, *place.parents) if there.exists())
    if not folder.is_dir():
        raise InputError(f"{name} cannot be written because {folder} is a file; give another name")
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"{name} cannot be written because {folder} is not writable ({error.strerror}); give another name"
        ) from error
