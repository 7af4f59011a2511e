"""Entries of official files, checked to hold what their format promises."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pumer.utils.errors import InputError
from pumer.utils.files import read_json, read_json_lines


def listed(path: Path, key: str | None, files: str) -> list[Any]:
    """The list that a JSON file holds, or that its object holds under a key.

    Args:
        path: the file.
        key: where the list is; None: the file is the list.
        files: what the data folder must hold, for messages.

    Raises:
        InputError: when the file is missing or broken, or holds no such list.
    """
    if not path.parent.is_dir():
        raise InputError(f"data folder {path.parent} does not exist; give data.root=FOLDER with {files}")
    content = read_json(path, _remedy(files))
    if key is None and isinstance(content, list):
        return content
    found = content.get(key) if isinstance(content, dict) and key is not None else None
    if not isinstance(found, list):
        raise InputError(f"{path} holds no list{'' if key is None else f' {key!r}'}; {_remedy(files)}")
    return found


def lines(path: Path, kinds: Mapping[str, type], files: str, unique: str) -> list[dict[str, Any]]:
    """The entries of a file of JSON lines, each checked to hold `kinds`; empty lines are passed over.

    Args:
        path: the file.
        kinds: keys that every entry must have, with the type of their values.
        files: what the data folder must hold, for messages.
        unique: the key whose value names the entry.

    Raises:
        InputError: when the file is missing or broken, or has two entries of one name; the message names the line.
    """
    entries = read_json_lines(path, _remedy(files))
    checked = [hold(entry, kinds, f"{path}: line {number}") for number, entry in entries]
    once(path, unique, (entry[unique] for entry in checked))
    return checked


def hold(entry: Any, kinds: Mapping[str, type], where: str) -> dict[str, Any]:
    """An entry that has been checked to be an object with certain keys.

    Args:
        entry: anything.
        kinds: the keys, with the type of their values; of a number, true and false are none.
        where: the entry, for messages.

    Raises:
        InputError: when a key is missing, or its value is of another type.
    """
    found: dict[str, Any] = entry if isinstance(entry, dict) else {}
    for name, kind in kinds.items():
        if not isinstance(found.get(name), kind) or isinstance(found[name], bool):
            raise InputError(f"{where} has no '{name}' ({kind.__name__})")
    return found


def once(path: Path, name: str, values: Iterable[Hashable]) -> None:
    """Refuse a file that has a value twice which must be there once.

    Args:
        path: the file, for the message.
        name: what the values are, for the message.
        values: all of them.

    Raises:
        InputError: naming the value.
    """
    counts = Counter(values)
    if counts.total() > len(counts):
        ((value, count),) = counts.most_common(1)
        raise InputError(f"{path} has {name} {value} {count} times; each may be there once, give the official file")


def _remedy(files: str) -> str:
    return f"the data folder must hold {files}, as downloaded"
