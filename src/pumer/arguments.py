"""Checks of settings that several jobs share, made before anything takes long."""

import os
from pathlib import Path

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
        folder = next(parent for parent in file.absolute().parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise InputError(f"{file} cannot be written, for {folder} is no folder to write to; give another name")
