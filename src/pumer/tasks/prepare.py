"""`pumer data prepare`: the images of a download, checked and put into a few Arrow files (`pumer.data.storage`)."""

import csv
import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Features, Value
from datasets import Image as ImageFeature
from datasets.arrow_writer import ArrowWriter
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pumer.data.images import decode, image_bytes
from pumer.data.storage import RECORD, SHARDS, SKIPPED, open_shard
from pumer.settings.data import PrepareConfig
from pumer.tasks import Example, Retrieval, Task, task_class
from pumer.utils.errors import InputError
from pumer.utils.files import read_config, write_text
from pumer.utils.locks import only_one
from pumer.utils.progress import progress_bar

SHARD_IMAGES = 512
"""Images per Arrow file: what a killed run loses at most per process."""
FEATURES = Features({"name": Value("string"), "image": ImageFeature(), "problem": Value("string")})
_VERSION = 1
_ROWS_IN_MEMORY = 16
_UNFINISHED = ".unfinished"
_JPEG = {"quality": 95, "subsampling": 0}


def run(config: PrepareConfig, progress: bool = True) -> dict[str, Any]:
    """Prepare a data folder; a run that was interrupted, however abruptly, continues where it was.

    The result is a function of the download and the settings alone, byte for byte.

    Args:
        config: what to prepare.
        progress: show a progress bar on stderr.

    Returns:
        The content of `prepared.json`: task and settings, number of `images` and of those `skipped`, the `reasons`
        with their counts, and by split the number of `examples` and how many of them are `left_out` for want of an
        image.

    Raises:
        InputError: for whatever the user can correct, and with `strict` for the first bad image.
    """
    config.check_places()
    with only_one(*config.written):
        return _prepared(config, progress)


def _prepared(config: PrepareConfig, progress: bool) -> dict[str, Any]:
    task = task_class(config.task)
    examples = annotated(task, config.root, config.splits)
    names = sorted({_name(config.root, path) for each in examples.values() for one in each for path in one.files})
    record = _start(config, examples, names)
    for split in examples:
        for path in task.annotation_files(config.root, split):
            if path.is_file():
                _put(config.out, path.relative_to(config.root), partial(shutil.copyfile, path))
    skipped = _write_shards(config, names, progress)
    _put(config.out, Path(SKIPPED), lambda aside: write_list(aside, skipped))
    record |= {
        "skipped": len(skipped),
        "reasons": dict(sorted(Counter(reason.partition(" (")[0] for reason in skipped.values()).items())),
        "splits": {split: _counts(config.root, each, skipped) for split, each in examples.items()},
        "complete": True,
    }
    _put(config.out, Path(RECORD), lambda aside: _write_record(aside, record))
    shutil.rmtree(config.out / _UNFINISHED, ignore_errors=True)  # a killed run's processes may live some seconds more
    return record


def annotated(task: type[Task], root: Path, splits: Sequence[str] | None = None) -> dict[str, list[Example]]:
    """What the annotation files say, by split, whether or not the images are there.

    Args:
        task: says which files.
        root: data folder.
        splits: which splits; None for all whose files are there.

    Raises:
        InputError: when there are none, or a file is missing or broken, holds nothing of a split that it is there for,
            or has an id twice.
    """
    wanted = [split for split in task.splits if any(path.is_file() for path in task.annotation_files(root, split))]
    if not wanted and splits is None:
        raise InputError(f"{root} holds no annotation files; it must hold {task.files}")
    examples = {split: task.examples(root, split) for split in splits or wanted}
    if splits is None and issubclass(task, Retrieval) and any(examples.values()):
        examples = {split: found for split, found in examples.items() if found}  # one file is there for all splits
    for split, found in examples.items():
        file = task.annotation_files(root, split)[0]
        if not found:
            raise InputError(f"{file} holds no examples of split {split}; download it again, or give other splits")
    return examples


def summary(record: Mapping[str, Any], out: Path) -> str:
    """What `run` did, in a few lines."""
    stored = record["images"] - record["skipped"]
    lines = [f"{out}: {stored} images in {record['shards']} files, {record['skipped']} skipped"]
    lines += [f"  {count} x {reason}" for reason, count in record["reasons"].items()]
    for split, counts in record["splits"].items():
        without = f", {counts['left_out']} left out for want of an image" if counts["left_out"] else ""
        lines.append(f"  {split}: {counts['examples']} examples{without}")
    return "\n".join([*lines, f"  the skipped images are listed in {out / SKIPPED}"] if record["skipped"] else lines)


def write_list(path: Path, problems: Mapping[str, str]) -> None:
    """Images and what is wrong with them as a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("image", "reason"), *problems.items()])
    write_text(path, text.getvalue())


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _start(config: PrepareConfig, examples: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The beginning of the record, on disk as well; refuses to continue a run with other settings."""
    record = {
        "version": _VERSION,
        "task": config.task,
        "resize": config.resize,
        "prepared_splits": list(examples),
        "images": len(names),
        "names": hashlib.sha256("\n".join(names).encode()).hexdigest(),
        "shards": -(-len(names) // SHARD_IMAGES),
    }
    found = config.out / RECORD
    if found.is_file():
        before = read_config(found, "remove the folder, or give a new one")
        for name, value in record.items():
            if before.get(name) != value:
                raise InputError(
                    f"{config.out} was begun with {name}={before.get(name)}, not {value}; give a new folder"
                )
        if config.strict:
            _refuse_known_problems(config)  # while the folder is still complete
    elif config.out.is_dir() and any(path.name != _UNFINISHED for path in config.out.iterdir()):
        raise InputError(f"{config.out} holds other files; give an empty or new folder")
    shutil.rmtree(config.out / _UNFINISHED, ignore_errors=True)
    try:
        (config.out / _UNFINISHED).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{config.out} cannot be written to ({error.strerror}); give another folder") from error
    _put(config.out, Path(RECORD), lambda aside: _write_record(aside, record | {"complete": False}))
    return record


def _put(out: Path, name: Path, write: Callable[[Path], Any]) -> None:
    """Write a file aside, then give it its name: it is there as a whole or not at all."""
    aside = out / _UNFINISHED / f"{name.name}.{os.getpid()}"
    write(aside)
    with aside.open("rb+") as file:
        os.fsync(file.fileno())
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    aside.replace(out / name)


def _write_record(path: Path, record: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _counts(root: Path, examples: Sequence[Example], skipped: Mapping[str, str]) -> dict[str, int]:
    left_out = sum(any(_name(root, path) in skipped for path in example.files) for example in examples)
    return {"examples": len(examples), "left_out": left_out}


def _write_shards(config: PrepareConfig, names: Sequence[str], progress: bool) -> dict[str, str]:
    """Write what is not there yet; why images were skipped, in all shards, by name."""
    shards = _Shards(config, names)
    skipped: dict[str, str] = {}
    with progress_bar(enabled=progress) as bar:
        shown = bar.add_task("prepare", total=len(names), note="")
        # A DataLoader's processes end with it, also when it is killed.
        for index, problems in enumerate(DataLoader(shards, batch_size=None, num_workers=config.workers)):
            skipped |= problems
            bar.update(shown, advance=len(shards.names(index)), note=f"{len(skipped)} skipped")
    return skipped


class _Shards(Dataset[dict[str, str]]):
    """Shard by shard: written, unless it is there, and the problems of its images."""

    def __init__(self, config: PrepareConfig, names: Sequence[str]) -> None:
        self._config = config
        self._parts = [names[start : start + SHARD_IMAGES] for start in range(0, len(names), SHARD_IMAGES)]

    def __len__(self) -> int:
        return len(self._parts)

    def names(self, index: int) -> Sequence[str]:
        return self._parts[index]

    def __getitem__(self, index: int) -> dict[str, str]:
        config, name = self._config, Path(SHARDS) / f"{index:05d}-of-{len(self):05d}.arrow"
        problems = _problems(config.out / name) if (config.out / name).is_file() else None
        if problems is None or (problems and (config.retry or config.strict)):
            _put(config.out, name, lambda aside: self._write(aside, self.names(index)))
            problems = _problems(config.out / name)
        if problems and config.strict:
            raise _refusal(config, *next(iter(problems.items())))
        return problems

    def _write(self, path: Path, names: Sequence[str]) -> None:
        with ArrowWriter(path=str(path), features=FEATURES, writer_batch_size=_ROWS_IN_MEMORY) as writer:
            for name in names:
                writer.write(_row(self._config.root, name, self._config.resize))
            writer.finalize()


def _problems(shard: Path) -> dict[str, str]:
    names, _, problems = open_shard(shard)
    return {name: problem for name, problem in zip(names, problems, strict=True) if problem is not None}


def _refuse_known_problems(config: PrepareConfig) -> None:
    """Refuse an image that an earlier run had to skip and that is still of no use."""
    for shard in sorted((config.out / SHARDS).glob("*.arrow")):
        for image in _problems(shard):
            problem = _row(config.root, image, None)["problem"]
            if problem is not None:
                raise _refusal(config, image, problem)


def _refusal(config: PrepareConfig, image: str, reason: str) -> InputError:
    return InputError(f"image {config.root / image} {reason}; without --strict it would be skipped and listed")


def _row(root: Path, name: str, edge: int | None) -> dict[str, Any]:
    try:
        data = image_bytes(root / name)
        image = decode(data)
    except InputError as error:
        return {"name": name, "image": None, "problem": str(error)}
    if edge is not None and min(image.size) > edge:
        data = _scaled(image, edge)
    return {"name": name, "image": {"bytes": data, "path": None}, "problem": None}


def _scaled(image: Image.Image, edge: int) -> bytes:
    shorter = min(image.size)
    width, height = (round(side * edge / shorter) for side in image.size)
    file = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", **_JPEG)
    return file.getvalue()
