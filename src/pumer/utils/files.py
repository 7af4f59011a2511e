"""Reading and writing whole files: JSON and text, there as a whole or not at all."""

import codecs
import csv
import io
import json
import math
import os
import re
import shutil
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from pumer.utils.errors import InputError

MAX_BYTES = 4 * 2**30
"""Larger text files are refused; the largest official one has 0.7 GB."""
MAX_CONFIG_BYTES = 64 * 2**20
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: str | Path, remedy: str = "give another file") -> Any:
    """Content of a JSON file, with or without a byte-order mark; errors name the line where it breaks, and the remedy.

    ``NaN``, ``Infinity`` and half of a surrogate pair, which Python's parser takes beyond the standard, are refused.
    """
    with _reading(path, MAX_BYTES, remedy) as text:
        return _parsed(text, str(path))


def read_config(path: str | Path, remedy: str = "give another file") -> dict[str, Any]:
    """Content of a small JSON file that holds one object, each key once and numbers that a float can hold."""
    with _reading(path, MAX_CONFIG_BYTES, remedy) as text:
        content = _parsed(text, str(path), "a config")
        if not isinstance(content, dict):
            raise InputError(f"{path} must hold a JSON object, not a {type(content).__name__}")
        return content


def read_json_lines(path: str | Path, remedy: str = "give another file") -> list[tuple[int, Any]]:
    """Number and content of every line of a file of JSON lines that is not empty; see `read_json`."""
    with _reading(path, MAX_BYTES, remedy) as text:
        lines = enumerate(_lines(text), start=1)
        return [(number, _parsed(line, f"{path}: line {number}", "a line")) for number, line in lines if line.strip()]


def read_csv(path: str | Path, remedy: str = "give another file") -> list[tuple[int, list[str]]]:
    """Number of its last line, and values, of every row of a CSV file that is not empty; all quotes must close."""
    with _reading(path, MAX_BYTES, remedy) as text:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            return [(reader.line_num, row) for row in reader if row]
        except csv.Error as error:
            raise InputError(f"{path} is not valid CSV: {error} in line {reader.line_num}") from error


def read_lines(path: str | Path, remedy: str = "give another file") -> list[str]:
    r"""Lines of a text file, without their ends: ``\n``, ``\r\n`` or ``\r``."""
    return _lines(read_text(path, remedy))


def read_text(path: str | Path, remedy: str = "give another file") -> str:
    """Text of a file in UTF-8, or in UTF-16 with a byte-order mark; without the mark, its line ends as they are."""
    with _reading(path, MAX_BYTES, remedy) as text:
        return text


@contextmanager
def _reading(path: str | Path, most: int, remedy: str) -> Iterator[str]:
    """The text of a file; errors about it, here and in the block, end in the remedy."""
    try:
        yield _text(path, most)
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from error.__cause__


def _text(path: str | Path, most: int) -> str:
    encoding, name = "utf-8-sig", "UTF-8"
    try:
        with open(path, "rb") as file:
            about = os.fstat(file.fileno())
            if stat.S_ISCHR(about.st_mode):
                raise InputError(f"{path} is a device, not a file")
            if about.st_size > most:
                raise InputError(f"{path} is too large ({about.st_size} bytes; at most {most} are read)")
            data = file.read()
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            encoding, name = "utf-16", "UTF-16"
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not {name} text: {error.reason} at byte {error.start}") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path} does not exist") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except InputError:
        raise
    except ValueError as error:  # a null character in the name
        raise InputError(f"{str(path)!r} is not a file name: {first_line(error)}") from error


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")  # other line breaks may stand in a text


def _parsed(text: str, name: str, what: Literal["a file", "a line", "a config"] = "a file") -> Any:
    """Parse JSON; of a config, which is small, every number is checked."""
    try:
        floats = _finite if what == "a config" else None
        content = json.loads(text, parse_constant=_refuse, parse_float=floats, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        where = "" if what == "a line" else f" in line {error.lineno}"
        raise InputError(f"{name} is not valid JSON: {error.msg}{where}") from error
    except RecursionError:
        raise InputError(f"{name} is nested too deeply to be read") from None
    except InputError as error:
        raise InputError(f"{name} {error}") from None
    except ValueError as error:  # a number that Python refuses to convert
        raise InputError(f"{name} holds a number of more than {sys.get_int_max_str_digits()} digits") from error
    if what != "a config" and _SURROGATE.search(text):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{name} holds half of a surrogate pair, {error.object[error.start]!r}") from error
    return content


def _refuse(constant: str) -> Any:
    raise InputError(f"is not valid JSON: it holds {constant}")


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise InputError(f"holds {number[:20]}, which is too large a number")
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise InputError(f"holds {key!r} twice")
    return content


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file as a whole or not at all; see `write_bytes`."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file as a whole or not at all; half of a surrogate pair, as in file names, is escaped."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file as a whole or not at all."""
    try:
        with new_file(path) as aside:
            aside.write_bytes(content)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}; give another place, or make room") from error


@contextmanager
def new_file(path: str | Path, folder: Path | None = None, sync: bool = False) -> Iterator[Path]:
    """Write a file aside, beside the final one or in `folder`, and rename it when the block ends without an error.

    So it exists as a whole or not at all; with `sync` also after a loss of power.
    """
    path = Path(path)
    aside = (folder or path.parent) / f".{path.name}.{uuid4().hex[:8]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield aside
        if sync:
            with aside.open("rb+") as file:
                os.fsync(file.fileno())
        aside.replace(path)
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


@contextmanager
def replacing(directory: str | Path, whole: bool = False, last: str | None = None) -> Iterator[Path]:
    """Fill a folder aside and move its files into place when the block ends without an error.

    If `whole`, the new folder takes the place of the old one; else only its files do, one after the other. The file
    named `last` is away meanwhile: where it is missing, the folder is a mix of old and new.
    """
    final = Path(directory).resolve()
    if final.exists() and not final.is_dir():
        raise InputError(f"{final} is a file; give a folder to write to")
    final.parent.mkdir(parents=True, exist_ok=True)
    # inside a folder that exists: it may be a mount of its own, and a rename does not leave a file system
    beside = final if final.exists() and not whole else final.parent
    aside = beside / f".{final.name}.{uuid4().hex[:8]}"
    before = aside.with_name(f"{aside.name}-before")
    aside.mkdir()
    try:
        yield aside
        if whole and final.exists():
            final.replace(before)
        if not final.exists():
            aside.replace(final)
            return
        if last is not None:
            (final / last).unlink(missing_ok=True)
        for file in sorted(aside.iterdir(), key=lambda file: (file.name == last, file.name)):
            file.replace(final / file.name)
    finally:
        if before.exists() and not final.exists():  # interrupted between the two renames
            before.replace(final)
        for folder in (aside, before):
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(directory: str | Path) -> None:
    """Remove what `replacing` left beside a folder when it was killed; for a process that alone writes the folder.

    A folder that had been moved away for a new one, which did not come, is put back.
    """
    final = Path(directory).resolve()
    aside = re.compile(rf"\.{re.escape(final.name)}\.[0-9a-f]{{8}}(-before)?")
    for path in sorted(final.parent.glob(".*"), reverse=True):
        if (found := aside.fullmatch(path.name)) is None:
            continue
        if found[1] and not final.exists():
            path.replace(final)
        else:
            shutil.rmtree(path, ignore_errors=True)


def first_line(error: BaseException) -> str:
    """The first line of an error's text; the second as well, where the first one announces it."""
    first, *others = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join([first, *(line.strip() for line in others[:1])]) if first.endswith(":") else first
