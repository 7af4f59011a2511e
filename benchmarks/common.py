"""Shared by the scripts of this folder: the result files' place, arguments, what kept work depends on, differences."""

import argparse
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pumer.evaluation.statistics import bootstrap
from pumer.utils.errors import InputError
from pumer.utils.files import read_json, write_json

RESULTS = Path(__file__).parent / "results"


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of a script's arguments, whose help is the script's docstring."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def difference(scores: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`mean`, `low` and `high` of the paired difference of two runs on the same examples."""
    known = {each["id"]: each["score"] for each in others}
    return bootstrap([each["score"] - known[each["id"]] for each in scores], [each["source"] for each in scores])


@contextmanager
def user_errors() -> Iterator[None]:
    """End a script with one line for an error that a user can do something about."""
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")


def fingerprint(folder: Path) -> str:
    """A short hash of what a saved model's answers depend on: weights, processor, and the record of its data."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no config.json; give a folder that `pumer train` wrote")
    patterns = ("*.safetensors", "config.json", "run.json", "*processor_config.json", "tokenizer*.json")
    digest = hashlib.sha256()
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern)}):
        digest.update(f"{file.name} {file.stat().st_size} ".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def check_same(where: Path, kept: Mapping[str, Any], wanted: Mapping[str, Any], other: str) -> None:
    """Refuse to go on from what was made with other settings.

    Args:
        where: The file or folder that holds it.
        kept: The settings that it was made with, as far as they are known.
        wanted: Those of this run.
        other: What gives another place, such as "--name".

    Raises:
        InputError: For the first setting that differs.
    """
    for name, value in wanted.items():
        if kept.get(name, value) != value:
            raise InputError(f"{where} was made with {name}={kept[name]}, not {value}; give another {other}")


def keep_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write what the work in a folder depends on into its ``settings.json``, or refuse a folder of other settings."""
    file = folder / "settings.json"
    kept = read_json(file) if file.is_file() else {}
    check_same(folder, kept, settings, "--work or --name")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, kept | dict(settings))
