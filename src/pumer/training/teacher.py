"""The unreduced model that a reduced one imitates: asked about every batch, or once with its answers in a file."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from transformers import set_seed

from pumer.backbones.image_size import set_image_size
from pumer.checkpoint import has_processor, load, load_processor
from pumer.patching import patch
from pumer.reducers import NoReduction
from pumer.settings.train import TrainConfig
from pumer.tasks import Task
from pumer.tasks.fingerprint import weights_fingerprint
from pumer.tasks.loading import Collator, Examples
from pumer.tasks.session import Session, bind
from pumer.tasks.words import Words, embed_words
from pumer.tokens import Tokens
from pumer.training.distillation import final_tokens
from pumer.training.stopping import write_errors_stop
from pumer.utils.config import to_dict
from pumer.utils.errors import InputError
from pumer.utils.files import first_line, new_file
from pumer.utils.places import room_for

Batch = Mapping[str, Any]

SELF = "self"
"""The teacher that is the starting weights without reduction."""
NOT_FINITE = "the teacher's logits are not all finite numbers; give another teacher, or precision=fp32"
_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TeacherOutput:
    """The answers of a teacher for a batch: logits (B, A), and on request the final tokens of each encoder run."""

    logits: Tensor
    tokens: list[Tokens] | None = None


class Teacher:
    """A frozen, patched model that is asked about every batch; with `hidden`, it returns final tokens as well.

    It is no module of the model that learns, so that nothing saves or shards it.
    """

    def __init__(self, model: nn.Module, task: Task, hidden: bool = False) -> None:
        self.model = model.requires_grad_(False).eval()
        self.task, self.hidden = task, hidden

    def __call__(self, batch: Batch) -> TeacherOutput:
        """Answers for a batch of a `Collator`, on the model's device."""
        with torch.inference_mode():
            if not self.hidden:
                logits, tokens = self.task.logits(self.model, batch), None
            else:
                with final_tokens(self.model) as tokens:
                    logits = self.task.logits(self.model, batch)
        return TeacherOutput(logits.clone(), tokens)  # a clone made here can take part in a loss


class CachedTeacher:
    """The answers of a teacher for every training example, in a memory-mapped file that `cached_teacher` completed."""

    def __init__(self, path: Path) -> None:
        self.table = _open_table(path, "r")  # (examples, A), float32

    def __call__(self, batch: Batch) -> TeacherOutput:
        """Answers for the examples of a batch, by its `index`."""
        index: Tensor = batch["index"]
        return TeacherOutput(torch.from_numpy(self.table[index.cpu().numpy()]).to(index.device))


def load_teacher(config: TrainConfig, student: Session, words: Words) -> Teacher | None:
    """The teacher of a training: on the fast path, unreduced, with the student's answers and words; None without one.

    Args:
        config: Of the training.
        student: What is trained.
        words: Those that its tokenizer was given for this training, see `pumer.tasks.words.add_words`.
    """
    if config.teacher is None:
        return None
    model, task, tokenizer = student.model, student.task, student.inputs.tokenizer
    if config.teacher == SELF:
        set_seed(config.seed)
        teacher = task.model(config.model, task.labels)
        embed_words(teacher, tokenizer, words)
    else:
        teacher = load(config.teacher)
        known = bind(config.teacher, teacher, type(task)).labels
        if known != task.labels:
            other = f"other answers ({len(known)}) than the data in {config.data.root} ({len(task.labels)})"
            raise InputError(f"teacher {config.teacher} knows {other}; train it on the same data")
        words_known = load_processor(config.teacher).tokenizer.get_vocab() if has_processor(config.teacher) else None
        if words_known not in (None, tokenizer.get_vocab()):
            raise InputError(
                f"teacher {config.teacher} knows other words than {config.model} with data.add_words="
                f"{config.data.add_words}; train it with the same, from the same model"
            )
    set_image_size(config.image_size or model.config.image_size, teacher)  # it gets the images of the student
    hidden, widths = config.distillation.hidden_weight > 0, (teacher.config.hidden_size, model.config.hidden_size)
    if hidden and widths[0] != widths[1]:
        them = f"teacher {config.teacher} {widths[0]}, {config.model} {widths[1]}"
        raise InputError(f"distillation.hidden_weight needs hidden states of one width, not of {them}; leave it at 0")
    return Teacher(patch(teacher, NoReduction()), task, hidden)


def cached_teacher(
    teacher: Teacher,
    config: TrainConfig,
    examples: Examples,
    collate: Collator,
    fingerprint: str,
    device: torch.device,
    bar: Progress,
) -> CachedTeacher:
    """Ask a teacher about every training example once; answers that are in the file already are not computed again.

    Several processes share the work and the file; a call that was interrupted is continued by the next one. The
    settings and the data's `fingerprint` decide which file it is. The `bar` is started here.
    """
    folder = config.teacher_cache if isinstance(config.teacher_cache, Path) else config.output / "teacher"
    final = folder / f"{_key(teacher, config, examples, collate, fingerprint)}.npy"
    if final.is_file():
        return CachedTeacher(final)
    processes, part = PartialState(), final.with_suffix(".part")
    if processes.is_main_process and not part.is_file():
        _make_table(part, len(examples), len(teacher.task.labels))
    processes.wait_for_everyone()
    with write_errors_stop(folder), bar:
        table = _open_table(part, "r+")
        rows = np.flatnonzero(np.isnan(table[:, 0]))[processes.process_index :: processes.num_processes].tolist()
        processes.wait_for_everyone()  # all have looked at the table before anyone writes
        loader = DataLoader(Subset(examples, rows), config.batch_size, collate_fn=collate, num_workers=config.workers)
        teacher.model.to(device)
        shown = bar.add_task("teacher", total=len(rows), note="")
        for batch in loader:
            index, logits = batch["index"].numpy(), _logits(teacher, batch, device, config.precision)
            table[index, 1:] = logits[:, 1:]
            table[index, 0] = logits[:, 0]  # last: it marks the row as known
            bar.advance(shown, len(index))
        bar.remove_task(shown)
        table.flush()
    processes.wait_for_everyone()
    if processes.is_main_process:
        try:
            part.replace(final)
        except FileNotFoundError:  # a run that shares the folder was done first
            if not final.is_file():
                raise
    processes.wait_for_everyone()
    return CachedTeacher(final)


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


def _make_table(part: Path, rows: int, columns: int) -> None:
    """A table of which no row is known: its first column is NaN."""
    part.parent.mkdir(parents=True, exist_ok=True)
    remedy = "give teacher_cache=FOLDER on another disk, or teacher_cache=false"
    room_for(4 * rows * columns, part.parent, "teacher_cache", remedy)
    with new_file(part) as aside:
        table = np.lib.format.open_memmap(aside, mode="w+", dtype=np.float32, shape=(rows, columns))
        table[:, 0] = np.nan
        table.flush()


def _open_table(path: Path, mode: Literal["r", "r+"]) -> np.memmap[Any, Any]:
    """A table in a file, which may have been cut or changed since it was made."""
    try:
        np.lib.format.open_memmap(path, mode="r")  # "r+" would fill up a file that was cut
        return np.lib.format.open_memmap(path, mode=mode)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"teacher_cache file {path} cannot be read ({first_line(error)}); remove it") from error


def _logits(teacher: Teacher, batch: Batch, device: torch.device, precision: str) -> np.ndarray:
    inputs = {name: tensor.to(device) for name, tensor in batch["inputs"].items()}
    autocast = _AUTOCAST[precision]
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        logits = teacher({"inputs": inputs}).logits.float().cpu().numpy()
    if not np.isfinite(logits).all():
        raise InputError(NOT_FINITE)
    return logits
