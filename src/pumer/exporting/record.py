"""The record of an exported model, ``export.json``: what it holds, and reading it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple

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

_Kind = Any
"""Of an entry: a type; ``[kind]``, a list that is not empty, and ``[kind, ...]``, one that may be; ``(kind, kind)``, a
pair; a mapping, by name or, by ``str``, whatever the name; and any of them `_OrNull`."""


class _OrNull(NamedTuple):
    kind: _Kind


_NUMBER = int | float
_PIXELS: Mapping[str, _Kind] = {"resample": int, "scale": _NUMBER, "mean": [_NUMBER], "std": [_NUMBER]}
_ANY: Mapping[str, _Kind] = {
    "precision": str,
    "source": str,
    "architecture": str,
    "reduction": dict,
    "vocabulary": int,
    "sha256": str,
}
CHOOSING: Mapping[str, _Kind] = {
    **_ANY,
    "image_size": int,
    "images": int,
    "text_lengths": [int],
    "labels": [str, ...],
    "task": _OrNull(str),
    "root": _OrNull(str),
    "pixels": _OrNull(_PIXELS),
    "padding": _OrNull((int, str)),
    "programs": [{"file": str, "inputs": {str: [int]}, "outputs": [str]}],
}
GENERATING: Mapping[str, _Kind] = {
    **_ANY,
    "image_tokens": int,
    "image_token_id": int,
    "text_length": int,
    "pixel_shape": [int],
    "stages": [int],
    "end": [int, ...],
    "padding": int,
    "pixels": _OrNull({**_PIXELS, "edge": int, "crop": (int, int)}),
    "prompt": _OrNull({"text": str, "image_token": str, "special": bool}),
}
"""What the record of either kind of model holds, and what that is."""


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
    if fault := _fault(record, GENERATING if generates else CHOOSING):
        raise InputError(f"{fault} in {file}; {remedy}")
    if record["precision"] not in PRECISIONS:
        raise InputError(f"precision is {record['precision']!r} in {file}, not of {', '.join(PRECISIONS)}; {remedy}")
    for row, program in enumerate([] if generates else record["programs"]):
        if program["file"] in ("", "..") or Path(program["file"]).name != program["file"]:
            raise InputError(
                f"programs.{row}.file is {program['file']!r} in {file}, not a name in its folder; {remedy}"
            )
    return record


def _fault(value: Any, kind: _Kind, place: str = "") -> str | None:
    """The first entry that is missing or wrong, and how; None where all are as they must be."""
    parts: Iterable[tuple[Any, Any, _Kind]]
    if isinstance(kind, _OrNull):
        return None if value is None else _fault(value, kind.kind, place)
    if isinstance(kind, Mapping) and isinstance(value, dict):
        kinds = dict.fromkeys(value, kind[str]) if str in kind else kind
        parts = ((name, value.get(name, ...), each) for name, each in kinds.items())
    elif isinstance(kind, tuple) and isinstance(value, list) and len(value) == len(kind):
        parts = zip(range(len(kind)), value, kind, strict=True)
    elif isinstance(kind, list) and isinstance(value, list) and (value or ... in kind):
        parts = ((row, each, kind[0]) for row, each in enumerate(value))
    elif isinstance(kind, type | UnionType) and isinstance(value, kind) and (kind is bool or type(value) is not bool):
        return None
    else:
        return f"{place} is missing" if value is ... else f"{place} is {value!r:.80}"
    return next(filter(None, (_fault(each, own, f"{place}.{name}".lstrip(".")) for name, each, own in parts)), None)


def arithmetic(folder: Path, record: Mapping[str, Any], asked: str | None) -> str:
    """The precision that programs run in: the one asked for, else that of the export.

    Raises:
        InputError: where the program has no such precision: whether it is int8 is decided by the export, and so is, but
            for OpenVINO, every other one.
    """
    own: str = record["precision"]
    if asked not in (None, *PRECISIONS):
        raise InputError(f"precision must be {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}, not {asked!r}")
    if asked not in (None, own) and (record["format"] != "openvino" or "int8" in (asked, own)):
        what = f"{folder} is a program for {record['format']} in {own}"
        raise InputError(f"precision is {asked}, but {what}; leave it out, or export one for openvino in {asked}")
    return asked or own
