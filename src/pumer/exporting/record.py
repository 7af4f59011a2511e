"""The record of an exported model, ``export.json``: what it holds, and reading it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pumer.utils.errors import InputError
from pumer.utils.files import read_config
from pumer.utils.places import EXPORTED

VERSION = 2
"""Of the folder's layout, in its record."""
GENERATIVE, GENERATIVE_VERSION = "generative", 1
"""The kind of an exported model that generates, in its record, and the version of its layout."""
SUFFIXES = {"openvino": ".xml", "onnx": ".onnx", "torch": ".pt2"}
"""Of the file of a program, by what runs it."""
WEIGHTS = "weights.bin"
"""The file of the weights that several programs share."""
PRECISIONS = ("f32", "bf16", "f16", "int8")

_OR_NONE = type(None)
_ANY: Mapping[str, Any] = {
    "precision": str,
    "source": str,
    "architecture": str,
    "reduction": dict,
    "vocabulary": int,
    "pixels": (dict, _OR_NONE),
    "sha256": str,
}
CHOOSING: Mapping[str, Any] = {
    **_ANY,
    "image_size": int,
    "images": int,
    "text_lengths": list,
    "labels": list,
    "task": (str, _OR_NONE),
    "root": (str, _OR_NONE),
    "padding": (list, _OR_NONE),
    "programs": list,
}
GENERATING: Mapping[str, Any] = {
    **_ANY,
    "image_tokens": int,
    "image_token_id": int,
    "text_length": int,
    "pixel_shape": list,
    "stages": list,
    "end": list,
    "padding": int,
    "prompt": (dict, _OR_NONE),
}
"""What the record of either kind of model holds, and what that is."""
_PROGRAM: Mapping[str, Any] = {"file": str, "inputs": dict, "outputs": list}


def read_record(folder: str | Path) -> dict[str, Any]:
    """The content of the ``export.json`` of a folder that `pumer export` wrote, as this pumer reads it.

    Raises:
        InputError: for a folder without one, one of another version, and one that lacks an entry or holds a wrong one.
    """
    file, remedy = Path(folder) / EXPORTED, "export the model again"
    record = read_config(file, "give a folder that `pumer export` wrote")
    generates = record.get("kind") == GENERATIVE
    version = GENERATIVE_VERSION if generates else VERSION
    if record.get("version") != version or record.get("format") not in SUFFIXES:
        seen = f"version {record.get('version')!r}, format {record.get('format')!r}"
        raise InputError(f"{file} has {seen}; this pumer reads version {version}: {remedy}")
    programs = record.get("programs")
    parts = [
        (f"programs.{row}", each, _PROGRAM) for row, each in enumerate(programs if isinstance(programs, list) else ())
    ]
    for place, part, kinds in [("", record, GENERATING if generates else CHOOSING), *parts]:
        for name, kind in kinds.items():
            given = part if isinstance(part, dict) else {}
            if not isinstance(given.get(name, ...), kind):
                seen = f"is {given[name]!r:.80}" if name in given else "is missing"
                raise InputError(f"{f'{place}.{name}'.lstrip('.')} {seen} in {file}; {remedy}")
    return record


def arithmetic(folder: Path, record: Mapping[str, Any], asked: str | None) -> str:
    """The precision that programs run in: the one asked for, else that of the export.

    Raises:
        InputError: where the program has no such precision: int8 is decided by the export, and so is, but for OpenVINO,
            every other one.
    """
    own: str = record["precision"]
    if asked not in (None, *PRECISIONS):
        raise InputError(f"precision must be {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}, not {asked!r}")
    if asked == "int8" != own:
        raise InputError(f"{folder} is no int8 program, but {own}; export one with int8")
    if asked not in (None, own) and record["format"] != "openvino":
        kind = record["format"]
        raise InputError(
            f"precision is {asked}, but {folder} is a program for {kind} in {own}; export one for openvino"
        )
    return asked or own
