"""The weights of several programs in one file, each tensor once."""

import hashlib
from collections.abc import Sequence
from importlib import import_module
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

from pumer.exporting.record import WEIGHTS

_ALIGNMENT = 64
_SMALL = 1024
"""Shorter tensors stay in ONNX files, whose graph may be read for their values."""


def share_weights(files: Sequence[Path], to: str) -> None:
    """Move the weights of the programs of a folder into one file, where programs of another word count find theirs.

    Programs of torch stay as they are: their archive holds its weights.

    Args:
        files: Of the programs, several in one folder.
        to: What runs them.
    """
    share = {"openvino": _share_openvino, "onnx": _share_onnx}.get(to)
    if share is not None:
        with (files[0].parent / WEIGHTS).open("xb") as file:
            store = _Store(file)
            for each in files:
                share(each, store)


def digest(folder: Path) -> str:
    """A hash of the files that hold the programs' weights."""
    whole = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.suffix in (".bin", ".onnx", ".pt2")):
        with file.open("rb") as opened:
            hashlib.file_digest(opened, lambda: whole)
    return whole.hexdigest()


class _Store:
    """A file to which each content is written once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._places = file, dict[bytes, int]()

    def place(self, content: bytes) -> int:
        """Where a content begins."""
        key = hashlib.sha256(content).digest()
        if key not in self._places:
            self._file.write(bytes(-self._file.tell() % _ALIGNMENT))
            self._places[key] = self._file.tell()
            self._file.write(content)
        return self._places[key]


def _share_openvino(file: Path, store: _Store) -> None:
    tree, own = ElementTree.parse(file), file.with_suffix(".bin")
    with own.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as content:
        for layer in tree.iter("layer"):
            data = layer.find("data")
            if layer.get("type") == "Const" and data is not None:
                start, size = int(data.attrib["offset"]), int(data.attrib["size"])
                data.set("offset", str(store.place(content[start : start + size])))
    tree.write(file)
    own.unlink()


def _share_onnx(file: Path, store: _Store) -> None:
    onnx = import_module("onnx")
    model = onnx.load(str(file))
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) >= _SMALL:
            place = store.place(tensor.raw_data)
            onnx.external_data_helper.set_external_data(tensor, WEIGHTS, place, len(tensor.raw_data))
            tensor.ClearField("raw_data")
    onnx.save(model, str(file))
