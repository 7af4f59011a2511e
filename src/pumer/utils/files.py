"""Reading and writing whole files: JSON and text, there as a whole or not at all."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from pumer.errors import InputError


def read_json(path: str | Path) -> Any:
    """Content of a JSON file.

    Raises:
        InputError: If it is missing or not JSON, with the line where it breaks.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON: {error.msg} in line {error.lineno}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from error


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file aside, then rename it: it is there as a whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file aside, then rename it: it is there as a whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def replacing(directory: str | Path) -> Iterator[Path]:
    """Fill a folder aside and move its files into place when the block ends without an error.

    Args:
        directory: The final folder; made if it does not exist.

    Yields:
        The folder to write into.

    Raises:
        InputError: If ``directory`` is a file.
    """
    final = Path(directory).resolve()
    if final.exists() and not final.is_dir():
        raise InputError(f"{final} is a file; give a folder to write to")
    final.parent.mkdir(parents=True, exist_ok=True)
    # inside a folder that exists: it may be a mount of its own, and a rename does not leave a file system
    beside = final if final.exists() else final.parent
    aside = beside / f".{final.name}.{uuid4().hex[:8]}"
    aside.mkdir()
    try:
        yield aside
        if not final.exists():
            aside.replace(final)
            return
        for file in sorted(aside.iterdir()):
            file.replace(final / file.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def first_line(error: Exception) -> str:
    """What an error says, without the rest of its text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
