"""Commands and settings without the folders of the machine they ran on."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TOLD = ("command", "commands", "config")


def without_places(content: Any, places: Mapping[Path, str], told: bool = False) -> Any:
    """Plain data in which the folders that commands and settings name have other names.

    Args:
        content: dicts, lists and values; looked into below the keys of _TOLD alone.
        places: other names of folders; of two that fit, the longer one counts.
        told: whether `content` stands below such a key.
    """
    if isinstance(content, Mapping):
        return {name: without_places(value, places, told or name in _TOLD) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_places(value, places, told) for value in content]
    return _renamed(content, places) if told and isinstance(content, str) else content


def _renamed(text: str, places: Mapping[Path, str]) -> str:
    """Replaces whole paths and beginnings of paths: no part of a name stands before them, "/" or an end follows."""
    names = {str(place): name for place, name in places.items() if str(place) != "."}
    if not names:
        return text
    longest_first = "|".join(re.escape(place) for place in sorted(names, key=len, reverse=True))
    return re.sub(rf"(?<![\w./-])(?:{longest_first})(?=$|[/\s'\",\]}}])", lambda found: names[found[0]], text)
