"""Checks of files and folders that a user gives, made before anything takes long."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Protocol, TypeVar

from pumer.utils.errors import InputError

PREPARED = "prepared.json"
"""The record in a folder that `pumer data prepare` wrote."""
EXPORTED = "export.json"
"""The record in a folder that `pumer export` wrote."""


class _WithPlaces(Protocol):
    """What the config of every job has; see `pumer.settings.common.Job`."""

    @property
    def written(self) -> tuple[Path, ...]: ...

    def check_places(self) -> None: ...


JobConfig = TypeVar("JobConfig", bound=_WithPlaces)


def check_input(what: str, path: Path, folder: bool = False) -> None:
    """Refuse a file, or folder, that does not exist or is the other one; what a prepared folder may hold passes."""
    there, prepared = path.exists(), any((up / PREPARED).is_file() for up in path.absolute().parents)
    if prepared or (there and path.is_dir() == folder):
        return
    wanted, other = ("folder", "file") if folder else ("file", "folder")
    state = f"is a {other}, not a {wanted}" if there else "does not exist"
    raise InputError(f"{what} {path} {state}; give a {wanted} that is there")


def check_new_files(files: Sequence[Path], force: bool = False, inputs: Iterable[Path] = ()) -> None:
    """Refuse result files that could not be written, or would replace an input or, without `force`, anything."""
    given, read = [file.resolve() for file in files], {file.resolve() for file in inputs}
    for file in files:
        if file.resolve() in read:
            raise InputError(f"{file} is read, and would be overwritten; give another name to write to")
        if given.count(file.resolve()) > 1:
            raise InputError(f"{file} is given for two results; give each a file of its own")
        if file.is_dir():
            raise InputError(f"{file} is a folder; give the name of a file to write")
        check_new_folder(file.parent, name=file)
        if file.exists() and not force:
            raise InputError(f"{file} exists already; give another name, or --force to replace it")


def check_new_folder(folder: Path, name: Path | None = None) -> None:
    """Refuse a folder that could not be made or written to, for itself or for the file `name` in it."""
    place = folder.absolute()
    there = next(up for up in (place, *place.parents) if up.exists())
    if not there.is_dir():
        raise InputError(f"{name or folder} cannot be written because {there} is a file; give another name")
    try:
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = f"{there} is not writable ({error.strerror})"
        raise InputError(f"{name or folder} cannot be written because {reason}; give another name") from error


def is_exported(model: str | Path) -> bool:
    """Whether a model's name is that of a folder that `pumer export` wrote."""
    return (Path(model) / EXPORTED).is_file()


def check_not_exported(model: str | Path, command: str) -> None:
    """Refuse what `pumer export` wrote, for a command that needs weights."""
    if is_exported(model):
        raise InputError(f"{model} is an exported program; {command} needs the model it was made of")


def check_export(folder: Path, force: bool = False) -> None:
    """Refuse to replace a folder by an exported model, unless it is empty or, with `force`, holds one."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not is_exported(folder):
        raise InputError(f"{folder} holds other files, and would be replaced; give a new folder")
    if not force:
        raise InputError(f"{folder} holds an exported model already; give another folder, or --force to replace it")


def room_for(needed: int, folder: Path, name: str, remedy: str) -> None:
    """Refuse a file of so many bytes where the disk has no room: filling a mapped one would kill the process."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        left = f"which has {free / 2**30:.1f} left"
        raise InputError(f"{name} needs {needed / 2**30:.1f} GiB in {folder}, {left}; {remedy}")
