"""What a teacher says about every training example, asked once and kept in a memory-mapped file."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from pumer.settings.train import TrainConfig
from pumer.tasks.fingerprint import weights_fingerprint
from pumer.tasks.loading import Collator, Examples
from pumer.training.stopping import write_errors_stop
from pumer.training.teacher import NOT_FINITE, Batch, Taught, Teacher
from pumer.utils.arguments import room_for
from pumer.utils.config import to_dict
from pumer.utils.errors import InputError
from pumer.utils.files import first_line

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class RememberedTeacher:
    """What a teacher said about every training example, in a memory-mapped file.

    Attributes:
        table: (examples, A), float32.
    """

    def __init__(self, path: Path) -> None:
        """Open a file that `remember` completed."""
        self.table = _opened(path, "r")

    def to(self, device: torch.device) -> "RememberedTeacher":
        """Nothing to move; returns the teacher."""
        return self

    def __call__(self, batch: Batch) -> Taught:
        """What was said about the examples of a batch, by its `index`."""
        index: Tensor = batch["index"]
        return Taught(torch.from_numpy(self.table[index.cpu().numpy()]).to(index.device))


def remember(
    teacher: Teacher,
    config: TrainConfig,
    examples: Examples,
    collate: Collator,
    fingerprint: str,
    device: torch.device,
    bar: Progress,
) -> RememberedTeacher:
    """Ask a teacher about every training example once; what was asked before is not asked again.

    Several processes share the work and the file; a call that was interrupted is continued by the next one.

    Args:
        teacher: whom to ask.
        config: of the training; says where the file goes.
        examples: rows of the table.
        collate: makes the batches.
        fingerprint: of the data.
        device: of the teacher.
        bar: shows progress; it is started here.

    Raises:
        InputError: when the disk is too small, or the teacher says what is no number.
    """
    folder = config.teacher_cache if isinstance(config.teacher_cache, Path) else config.output / "teacher"
    final = folder / f"{_key(teacher, config, examples, collate, fingerprint)}.npy"
    if final.is_file():
        return RememberedTeacher(final)
    state, part = PartialState(), final.with_suffix(".part")
    if state.is_main_process and not part.is_file():
        _make(part, len(examples), len(teacher.task.labels))
    state.wait_for_everyone()
    with write_errors_stop(folder), bar:
        table = _opened(part, "r+")
        todo = np.flatnonzero(np.isnan(table[:, 0]))[state.process_index :: state.num_processes].tolist()
        state.wait_for_everyone()  # all have looked at the table before anyone writes
        loader = DataLoader(Subset(examples, todo), config.batch_size, collate_fn=collate, num_workers=config.workers)
        teacher.to(device)
        shown = bar.add_task("teacher", total=len(todo), note="")
        for batch in loader:
            _note(table, batch["index"].numpy(), _ask(teacher, batch, device, _AUTOCAST[config.precision]))
            bar.advance(shown, len(batch["index"]))
        bar.remove_task(shown)
        table.flush()
    state.wait_for_everyone()
    if state.is_main_process:
        try:
            part.replace(final)
        except FileNotFoundError:  # a run that shares the folder was done first
            if not final.is_file():
                raise
    state.wait_for_everyone()
    return RememberedTeacher(final)


def _key(teacher: Teacher, config: TrainConfig, examples: Examples, collate: Collator, fingerprint: str) -> str:
    """A hash over all that the answers depend on."""
    settings, inputs = to_dict(config), collate.inputs
    about = {
        **{name: settings[name] for name in ("task", "resize", "blank", "precision")},
        "teacher": weights_fingerprint(teacher.model),
        "labels": teacher.task.labels,
        "data": fingerprint,
        "split": config.data.train,
        "examples": [example.id for example in examples.examples],
        "text_length": inputs.text_length,
        "words": sorted(inputs.tokenizer.get_vocab().items()),
        "pixels": inputs.pixels.image_processor.to_json_string(),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def _make(part: Path, rows: int, columns: int) -> None:
    """A table of which no row is known: its first column is no number."""
    part.parent.mkdir(parents=True, exist_ok=True)
    remedy = "give teacher_cache=FOLDER on another disk, or teacher_cache=false"
    room_for(4 * rows * columns, part.parent, "teacher_cache", remedy)
    aside = part.with_suffix(".new")
    table = np.lib.format.open_memmap(aside, mode="w+", dtype=np.float32, shape=(rows, columns))
    table[:, 0] = np.nan
    table.flush()
    aside.replace(part)


def _opened(path: Path, mode: Literal["r", "r+"]) -> np.memmap[Any, Any]:
    """A table in a file.

    Raises:
        InputError: when the file was cut or changed since it was made.
    """
    try:
        np.lib.format.open_memmap(path, mode="r")  # "r+" would fill up a file that was cut
        return np.lib.format.open_memmap(path, mode=mode)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"teacher_cache file {path} cannot be read ({first_line(error)}); remove it") from error


def _note(table: np.ndarray, rows: np.ndarray, logits: np.ndarray) -> None:
    """Write rows; what says that they are known comes last."""
    table[rows, 1:] = logits[:, 1:]
    table[rows, 0] = logits[:, 0]


def _ask(teacher: Teacher, batch: Batch, device: torch.device, autocast: torch.dtype | None) -> np.ndarray:
    inputs = {name: tensor.to(device) for name, tensor in batch["inputs"].items()}
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        logits = teacher({"inputs": inputs}).logits.float().cpu().numpy()
    if not np.isfinite(logits).all():
        raise InputError(NOT_FINITE)
    return logits
