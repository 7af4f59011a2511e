"""Hashes that identify a data set, without reading its images, and a model's weights."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from pumer.data.storage import RECORD, SHARDS, storage_of
from pumer.tasks import Example, Task


def data_fingerprint(task: type[Task], root: Path, splits: Iterable[str], examples: Iterable[Example]) -> str:
    """A hash of the splits' annotation files and of the names and sizes of all files in the folders of the images.

    Where the folder lies does not matter. Of a prepared folder, its record and the sizes of its Arrow files count.
    """
    digest = hashlib.sha256()
    files = {path for split in splits for path in task.annotation_files(root, split)}
    folders = {path.parent for example in examples for path in example.files}
    stored = {storage.root for folder in folders if (storage := storage_of(folder / "image")) is not None}
    if stored:
        files |= {folder / RECORD for folder in stored}
        folders = {folder / SHARDS for folder in stored}
    for path in sorted(files):
        digest.update(f"{_below(path, root)}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    for folder in sorted(folders):
        sizes = sorted((path.name, path.stat().st_size) for path in folder.iterdir() if path.is_file())
        digest.update("".join(f"{_below(folder, root)}/{name} {size}\n" for name, size in sizes).encode())
    return f"sha256:{digest.hexdigest()}"


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def weights_fingerprint(model: nn.Module) -> str:
    """A hash over names, types, shapes and values of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
