"""`pumer data check`: what is wrong with a data folder, before hours of training, and how fast it can be read."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from transformers import ViltImageProcessorPil

from pumer.checkpoint import load_processor, trained_with
from pumer.data.images import read_image
from pumer.data.storage import missing_images, storage_of
from pumer.settings.data import CheckConfig
from pumer.tasks import Pixels, Task, task_class
from pumer.tasks.base import spread
from pumer.tasks.heads import classes_of
from pumer.tasks.loading import text_length_of
from pumer.tasks.prepare import annotated, write_list
from pumer.tasks.words import split_words, word_count
from pumer.utils.errors import InputError
from pumer.utils.locks import exclusive
from pumer.utils.progress import progress_bar

_SHOWN = 10
_PER_CALL = 64


@exclusive
def run(config: CheckConfig, console: Console | None = None, progress: bool = True) -> dict[str, Any]:
    """Read every annotation file and every image once, as training would.

    Args:
        config: what to check.
        console: where the table goes; None prints nothing.
        progress: show a progress bar on stderr.

    Returns:
        `splits`: of each the number of `examples`, `images`, images `missing`, `decoded` and `broken`; with a model
        `texts`, see `about_texts`, by split; `problems`, the reason by image; and with `speed` `images_per_second`.
    """
    splits: dict[str, dict[str, int]] = {}
    problems: dict[Path, str] = {}
    sound: list[Path] = []
    texts: dict[str, dict[str, int]] = {}
    task = task_class(config.task)
    for split, found in annotated(task, config.root, config.splits).items():
        if config.model is not None:
            texts[split] = about_texts([each.text for each in found], config.model, task, config.text_length)
        paths = list(dict.fromkeys(path for example in found for path in example.files))
        missing = missing_images(paths)
        there = spread([path for path in paths if path not in missing], config.limit)
        broken = _broken(split, there, config.workers, progress)
        problems |= missing | broken
        sound += [path for path in there if path not in broken]
        splits[split] = {"examples": len(found), "images": len(paths), "missing": len(missing)}
        splits[split] |= {"decoded": len(there), "broken": len(broken)}
    result: dict[str, Any] = {"splits": splits, "problems": {str(path): why for path, why in problems.items()}}
    if texts:
        result["texts"] = texts
    if config.output is not None:
        write_list(config.output, result["problems"])
    if config.speed and sound:
        result["images_per_second"] = images_per_second(spread(sound, config.speed_images), config.edge)
    if console is not None:
        _show(config, result, console)
    return result


def about_texts(texts: Sequence[str], model: str, task: type[Task], text_length: int | None) -> dict[str, int]:
    """What the tokenizer of a model for a task makes of texts.

    Returns:
        `text_length` in force; number of `texts`, tokens of the `longest`, number of `cut` ones; number of `words` and
        of those `split` into pieces.
    """
    _, _, config = classes_of(model, task.models())
    tokenizer = load_processor(model).tokenizer
    length = text_length_of(config, text_length or trained_with(model).get("text_length"))
    lengths = [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]] if texts else []
    return {
        "text_length": length,
        "texts": len(texts),
        "longest": max(lengths, default=0),
        "cut": sum(each > length for each in lengths),
        "words": word_count(texts),
        "split": split_words(tokenizer, texts).total(),
    }


def images_per_second(paths: Sequence[Path], edge: int) -> float:
    """How many images one core reads, decodes, resizes to `edge` x `edge` and normalises per second."""
    pixels = Pixels(ViltImageProcessorPil(size={"shortest_edge": edge}), cache_bytes=0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pixels(paths[:1])  # the first one waits for what is set up once
        start = time.perf_counter()
        for path in paths:
            pixels([path])
        return len(paths) / (time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)


def _broken(split: str, paths: Sequence[Path], workers: int, progress: bool) -> dict[Path, str]:
    """What is wrong with images that are there, each of which is decoded."""
    broken: dict[Path, str] = {}
    with progress_bar(enabled=progress) as bar:
        shown = bar.add_task(f"check {split}", total=len(paths), note="")
        for problems in DataLoader(paths, _PER_CALL, collate_fn=_problems, num_workers=workers):  # type: ignore[arg-type]
            broken |= problems
            bar.update(shown, advance=_PER_CALL, note=f"{len(broken)} broken")
    return broken


def _problems(paths: Sequence[Path]) -> dict[Path, str]:
    problems = {}
    for path in paths:
        try:
            read_image(path)
        except InputError as error:
            problems[path] = str(error.__cause__)
    return problems


def _show(config: CheckConfig, result: dict[str, Any], console: Console) -> None:
    kind = "prepared folder" if storage_of(config.root / "image") else "download"
    table = Table("split", title=f"{config.task} in {config.root} ({kind})")
    for column in next(iter(result["splits"].values())):
        table.add_column(column, justify="right")
    for split, counts in result["splits"].items():
        table.add_row(split, *map(str, counts.values()))
    console.print(table)
    lines = [f"{path} {reason}" for path, reason in list(result["problems"].items())[:_SHOWN]]
    if "images_per_second" in result:
        speed, edge = result["images_per_second"], config.edge
        lines.insert(0, f"{speed:.0f} images/s per core: read, decoded, resized to {edge} x {edge}, normalised")
    for split, about in result.get("texts", {}).items():
        cut, share = f"{about['cut']} of {about['texts']}", about["split"] / max(1, about["words"])
        lines.append(
            f"{split}: {cut} texts have more than {about['text_length']} tokens and will be cut; the longest has "
            f"{about['longest']}"
        )
        lines.append(f"{split}: {share:.0%} of the words are split into pieces")
    if len(result["problems"]) > _SHOWN:
        lines.append(f"... and {len(result['problems']) - _SHOWN} more; output=FILE.csv lists all")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
