"""Reading official annotation files: every entry is checked to hold what the format promises."""

from collections import Counter
from collections.abc import Container, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pumer.utils.errors import InputError
from pumer.utils.files import read_json, read_json_lines

Fields = Mapping[str, type]
"""Keys that an entry must have, with the type of their values; true and false are no numbers."""


def read_entries(path: Path, key: str | None, fields: Fields, files: str, unique: str = "") -> list[dict[str, Any]]:
    """The list that a JSON file holds: under `key` of its object, or with None the file itself.

    `fields` are checked in every entry, `unique` names the one whose value may occur once only, and `files` names what
    the data folder must hold, for messages.
    """
    check_folder(path.parent, files)
    content = read_json(path, _remedy(files))
    found = content if key is None else content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise InputError(f"{path} holds no list{'' if key is None else f' {key!r}'}; {_remedy(files)}")
    of = "" if key is None else f" of '{key}'"
    entries = [checked(entry, fields, f"{path}: entry {index}{of}") for index, entry in enumerate(found)]
    if unique:
        check_unique(path, unique, (entry[unique] for entry in entries))
    return entries


def read_entry_lines(path: Path, fields: Fields, files: str, unique: str) -> list[dict[str, Any]]:
    """The entries of a file of JSON lines; arguments and errors as of `read_entries`."""
    lines = read_json_lines(path, _remedy(files))
    entries = [checked(entry, fields, f"{path}: line {number}") for number, entry in lines]
    check_unique(path, unique, (entry[unique] for entry in entries))
    return entries


def checked(entry: Any, fields: Fields, where: str) -> dict[str, Any]:
    """The entry, checked to be an object with these fields; `where` begins the message."""
    found: dict[str, Any] = entry if isinstance(entry, dict) else {}
    for name, kind in fields.items():
        if not isinstance(found.get(name), kind) or isinstance(found[name], bool):
            raise InputError(f"{where} has no '{name}' ({kind.__name__})")
    return found


def check_unique(path: Path, name: str, values: Iterable[Hashable]) -> None:
    """Refuse a file in which a value occurs twice."""
    counts = Counter(values)
    if counts.total() > len(counts):
        ((value, count),) = counts.most_common(1)
        raise InputError(f"{path} has {name} {value} {count} times; each may be there once, give the official file")


def check_folder(root: Path, files: str) -> None:
    """Refuse a data folder that does not exist."""
    if not root.is_dir():
        raise InputError(f"data folder {root} does not exist; give data.root=FOLDER with {files}")


def check_split(split: str, allowed: Iterable[str]) -> None:
    """Refuse the name of a split that is not among those that are allowed."""
    names = list(allowed)
    if split not in names:
        raise InputError(f"split must be one of {', '.join(names)}, not '{split}'")


def image_file(folder: Path, stem: str, names: Container[str]) -> Path:
    """An image's path: a PNG file if it is among the names in the folder, else JPEG as in the official download."""
    return folder / f"{stem}{'.png' if f'{stem}.png' in names else '.jpg'}"


def _remedy(files: str) -> str:
    return f"give {files}, as downloaded"
