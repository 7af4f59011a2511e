"""`pumer data prepare`: the images of a download, checked and put into a few Arrow files (`pumer.data.storage`)."""

import csv
import hashlib
import io
import json
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
from torch.utils.data import DataLoader

from pumer.data.images import decode, image_bytes
from pumer.data.storage import RECORD, SHARDS, SKIPPED, open_shard
from pumer.settings.data import PrepareConfig
from pumer.tasks import Example, Retrieval, Task, task_class
from pumer.utils.errors import InputError
from pumer.utils.files import new_file, read_config, write_text
from pumer.utils.locks import exclusive
from pumer.utils.progress import progress_bar

SHARD_IMAGES = 512
"""Images per Arrow file: what a killed run loses at most per process."""
FEATURES = Features({"name": Value("string"), "image": ImageFeature(), "problem": Value("string")})
_VERSION = 1
_ROWS_IN_MEMORY = 16
_UNFINISHED = ".unfinished"
_JPEG = {"quality": 95, "subsampling": 0}


@exclusive
def run(config: PrepareConfig, progress: bool = True) -> dict[str, Any]:
    """Prepare a data folder; a run that was interrupted, however abruptly, continues where it was.

    The result is a function of the download and the settings alone, byte for byte.

    Args:
        config: what to prepare.
        progress: show a progress bar on stderr.

    Returns:
        The content of `prepared.json`: task and settings, number of `images` and of those `skipped`, the `reasons`
        with their counts, and by split the number of `examples` and how many of them are `left_out` because an image
        is missing.

    Raises:
        InputError: for user errors, and with `strict` for the first bad image.
    """
    task = task_class(config.task)
    examples = annotated(task, config.root, config.splits)
    images = {split: [_names(config.root, one) for one in each] for split, each in examples.items()}
    names = sorted({name for each in images.values() for found in each for name in found})
    record = _start(config, list(examples), names)
    for split in examples:
        for path in task.annotation_files(config.root, split):
            if path.is_file():
                _put(config.out, path.relative_to(config.root), partial(shutil.copyfile, path))
    skipped = _write_shards(config, names, progress)
    _put(config.out, SKIPPED, lambda aside: write_list(aside, skipped))
    record |= {
        "skipped": len(skipped),
        "reasons": dict(sorted(Counter(reason.partition(" (")[0] for reason in skipped.values()).items())),
        "splits": {
            split: {"examples": len(each), "left_out": sum(not skipped.keys().isdisjoint(found) for found in each)}
            for split, each in images.items()
        },
        "complete": True,
    }
    _put_record(config.out, record)
    shutil.rmtree(config.out / _UNFINISHED, ignore_errors=True)  # a killed run's processes may live some seconds more
    return record


def annotated(task: type[Task], root: Path, splits: Sequence[str] | None = None) -> dict[str, list[Example]]:
    """The examples in the annotation files, by split, whether or not the images are there.

    Without `splits`, of all whose files are there. Refuses a folder without files, and one that holds nothing of a
    split that it is there for.
    """
    wanted = [split for split in task.splits if any(path.is_file() for path in task.annotation_files(root, split))]
    if not wanted and splits is None:
        inside = root / task.name
        there = any(path.is_file() for split in task.splits for path in task.annotation_files(inside, split))
        remedy = f"did you mean {inside}?" if there else f"it must hold {task.files}"
        raise InputError(f"{root} holds no annotation files; {remedy}")
    examples = {split: task.examples(root, split) for split in splits or wanted}
    if splits is None and issubclass(task, Retrieval) and any(examples.values()):
        examples = {split: found for split, found in examples.items() if found}  # one file is there for all splits
    for split, found in examples.items():
        if not found:
            file = task.annotation_files(root, split)[0]
            raise InputError(f"{file} holds no examples of split {split}; download it again, or give other splits")
    return examples


def summary(record: Mapping[str, Any], out: Path) -> str:
    """The record of a run in a few lines."""
    stored = record["images"] - record["skipped"]
    lines = [f"{out}: {stored} images in {record['shards']} files, {record['skipped']} skipped"]
    lines += [f"  {count} x {reason}" for reason, count in record["reasons"].items()]
    for split, counts in record["splits"].items():
        left_out = f", {counts['left_out']} left out because an image is missing" if counts["left_out"] else ""
        lines.append(f"  {split}: {counts['examples']} examples{left_out}")
    return "\n".join([*lines, f"  the skipped images are listed in {out / SKIPPED}"] if record["skipped"] else lines)


def write_list(path: Path, problems: Mapping[str, str]) -> None:
    """Write the problem of every image to a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("image", "reason"), *problems.items()])
    write_text(path, text.getvalue())


def _names(root: Path, example: Example) -> list[str]:
    return [path.relative_to(root).as_posix() for path in example.files]


def _start(config: PrepareConfig, splits: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """The beginning of the record, on disk as well; refuses to continue a run with other settings."""
    record = {
        "version": _VERSION,
        "task": config.task,
        "resize": config.resize,
        "prepared_splits": list(splits),
        "images": len(names),
        "names": hashlib.sha256("\n".join(names).encode()).hexdigest(),
        "shards": -(-len(names) // SHARD_IMAGES),
    }
    out, unfinished = config.out, config.out / _UNFINISHED
    if (out / RECORD).is_file():
        before = read_config(out / RECORD, "remove the folder, or give a new one")
        for name, value in record.items():
            if before.get(name) != value:
                raise InputError(f"{out} was begun with {name}={before.get(name)}, not {value}; give a new folder")
        if config.strict:
            _refuse_known_problems(config)  # while the folder is still complete
    elif out.is_dir() and any(path != unfinished for path in out.iterdir()):
        raise InputError(f"{out} holds other files; give an empty or new folder")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True, exist_ok=True)
    _put_record(out, record | {"complete": False})
    return record


def _put(out: Path, name: str | Path, write: Callable[[Path], Any]) -> None:
    """Write a file aside, then give it its name: it is there as a whole or not at all."""
    with new_file(out / name, out / _UNFINISHED, sync=True) as aside:
        write(aside)


def _put_record(out: Path, record: Mapping[str, Any]) -> None:
    text = json.dumps(record, indent=2) + "\n"
    _put(out, RECORD, lambda aside: aside.write_text(text, encoding="utf-8"))


def _write_shards(config: PrepareConfig, names: Sequence[str], progress: bool) -> dict[str, str]:
    """Write what is not there yet; why images were skipped, in all shards, by name."""
    parts = [names[start : start + SHARD_IMAGES] for start in range(0, len(names), SHARD_IMAGES)]
    shards: Any = [(Path(SHARDS) / f"{index:05d}-of-{len(parts):05d}.arrow", part) for index, part in enumerate(parts)]
    skipped: dict[str, str] = {}
    with progress_bar(enabled=progress) as bar:
        shown = bar.add_task("prepare", total=len(names), note="")
        # A DataLoader's processes end with it, also when it is killed.
        loader = DataLoader(shards, None, collate_fn=partial(_write_shard, config), num_workers=config.workers)
        for part, problems in zip(parts, loader, strict=True):
            skipped |= problems
            bar.update(shown, advance=len(part), note=f"{len(skipped)} skipped")
    return skipped


def _write_shard(config: PrepareConfig, shard: tuple[Path, Sequence[str]]) -> dict[str, str]:
    """Write a shard, given its file and its images, unless it is there; the problems of its images."""
    file, names = shard
    problems = _problems(config.out / file) if (config.out / file).is_file() else None
    if problems is None or (problems and (config.retry or config.strict)):
        _put(config.out, file, partial(_write_images, config, names))
        problems = _problems(config.out / file)
    if problems and config.strict:
        raise _refusal(config, *next(iter(problems.items())))
    return problems


def _write_images(config: PrepareConfig, names: Sequence[str], path: Path) -> None:
    with ArrowWriter(path=str(path), features=FEATURES, writer_batch_size=_ROWS_IN_MEMORY) as writer:
        for name in names:
            writer.write(_row(config.root, name, config.resize))
        writer.finalize()


def _problems(shard: Path) -> dict[str, str]:
    names, _, problems = open_shard(shard)
    return {name: problem for name, problem in zip(names, problems, strict=True) if problem is not None}


def _refuse_known_problems(config: PrepareConfig) -> None:
    """Refuse an image that an earlier run had to skip and that is still unusable."""
    for shard in sorted((config.out / SHARDS).glob("*.arrow")):
        for image in _problems(shard):
            problem = _row(config.root, image, None)["problem"]
            if problem is not None:
                raise _refusal(config, image, problem)


def _refusal(config: PrepareConfig, image: str, reason: str) -> InputError:
    return InputError(f"image {config.root / image} {reason}; without --strict it would be skipped and listed")


def _row(root: Path, name: str, edge: int | None) -> dict[str, Any]:
    """An image's row of an Arrow file, scaled down to the edge if one is given; see FEATURES."""
    try:
        data = image_bytes(root / name)
        image = decode(data)
    except InputError as error:
        return {"name": name, "image": None, "problem": str(error)}
    shorter = min(image.size)
    if edge is not None and shorter > edge:
        width, height = (round(side * edge / shorter) for side in image.size)
        file = io.BytesIO()
        image.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", **_JPEG)
        data = file.getvalue()
    return {"name": name, "image": {"bytes": data, "path": None}, "problem": None}
