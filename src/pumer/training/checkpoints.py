"""The checkpoints of a run: a folder under its own name is complete, whenever the run was killed."""

import json
import logging
import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from pumer.checkpoint import write_reduction
from pumer.utils.errors import InputError, out_of_memory, some
from pumer.utils.tensors import not_finite

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
ANEW = "give resume=false to begin anew"
INCOMPLETE = ".saving"
"""Folder in the output in which checkpoints are written."""
_SHARDED = "global_step*"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model*", _SHARDED)
_ALTERNATIVES = (
    _WEIGHTS,
    ("optimizer.pt", "optimizer.bin", "optimizer_*", _SHARDED),
    ("scheduler.pt", _SHARDED),
    ("rng_state.pth", "rng_state_*.pth"),
)
"""Files that a checkpoint needs; the first of a line is that of one process or of DDP, the others are those of FSDP and
DeepSpeed."""
_SCALER = ("scaler.pt", _SHARDED)
_ARGUMENTS = "training_args.bin"
"""Written by transformers, and never read here."""


class AtomicCheckpoints(TrainerCallback):
    """Lets `Trainer` write checkpoints into a folder aside, and moves each to its place when it is complete."""

    def __init__(self, output: Path, keep: int, processor: Any) -> None:
        self.output, self.keep, self.processor = output, keep, processor

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Remove what a run that was killed left; find the best checkpoint also in a folder that was moved."""
        if args.should_save:
            shutil.rmtree(self.output / INCOMPLETE, ignore_errors=True)
        if state.best_global_step:
            state.best_model_checkpoint = str(checkpoint_folder(self.output, state.best_global_step))

    def on_step_end(self, args: TrainingArguments, *_: Any, **kwargs: Any) -> None:
        """Let `Trainer`, which saves after a step or an epoch, write aside."""
        args.output_dir = str(self.output / INCOMPLETE)

    on_epoch_end = on_step_end

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Add `reduction.json` and the processor to what `Trainer` wrote, move it to its place, and remove old ones."""
        processes, final = PartialState(), checkpoint_folder(self.output, state.global_step)
        processes.wait_for_everyone()
        args.output_dir = str(self.output)  # for the trackers, which may upload the checkpoint
        if state.best_global_step == state.global_step:
            state.best_model_checkpoint = str(final)
        if args.should_save:
            aside = self.output / INCOMPLETE
            write_reduction(kwargs["model"], aside / final.name)
            self.processor.save_pretrained(aside / final.name)
            state.save_to_json(str(aside / final.name / STATE_FILE))
            _move_into_place(aside / final.name, final)
            for old in checkpoints(self.output)[: -self.keep]:
                if str(old) != state.best_model_checkpoint:
                    old.replace(aside / old.name)  # first, so that none is ever half there
            shutil.rmtree(aside, ignore_errors=True)
        processes.wait_for_everyone()

    def on_log(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Check the weights of the best checkpoint; `Trainer` logs the run's totals right before it reads them."""
        if "train_runtime" in kwargs["logs"]:
            args.output_dir = str(self.output)
            if args.load_best_model_at_end and state.best_model_checkpoint:
                check_weights(Path(state.best_model_checkpoint), ANEW, kwargs["model"])


def checkpoint_folder(output: Path, step: int) -> Path:
    """Folder of the checkpoint of a step."""
    return output / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was made."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints(output: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    found = (path for path in output.glob("*") if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", path.name))
    return sorted(found, key=step_of)


def last_checkpoint(output: Path) -> Path | None:
    """The newest checkpoint; see `check_complete`."""
    return next(reversed(checkpoints(output)), None)


def is_finished(checkpoint: Path) -> bool:
    """Whether the run was over when its checkpoint was written: no steps left, or stopped early."""
    state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
    return bool(state.stateful_callbacks.get("TrainerControl", {}).get("args", {}).get("should_training_stop"))


def check_complete(checkpoint: Path, scaled: bool = False, best: bool = False) -> None:
    """Refuse a checkpoint that was copied in part, cut or changed; reads no weights, see `check_weights`.

    `scaled`: the loss is scaled, as in float16. `best`: the run returns its best model, whose weights must be there
    too.
    """
    remedy = way_out(checkpoint)
    with refused(checkpoint / STATE_FILE, remedy):
        state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
        if state.global_step != step_of(checkpoint):
            raise InputError(f"it is of step {state.global_step}, not {step_of(checkpoint)}")
    for names in (*_ALTERNATIVES, *([_SCALER] if scaled else [])):
        if not _existing(checkpoint, names):
            raise InputError(f"{checkpoint / names[0]} is missing; {remedy}")
    for file in sorted(checkpoint.iterdir()):
        with refused(file, remedy):
            _try_to_read(file)
    ranks = {int(file.stem.rpartition("_")[2]) for file in checkpoint.glob("rng_state_*.pth")}
    if lost := set(range(len(ranks))) - ranks:
        raise InputError(f"{checkpoint / f'rng_state_{min(lost)}.pth'} is missing; {remedy}")
    before, now = max(1, len(ranks)), int(os.environ.get("WORLD_SIZE", "1"))
    if before != now:
        logger.warning("%s is of %d processes, and there are %d: dropout is drawn anew", checkpoint, before, now)
    if best and state.best_global_step:
        check_weights(checkpoint_folder(checkpoint.parent, state.best_global_step), ANEW)


def check_weights(checkpoint: Path, remedy: str, model: nn.Module | None = None) -> None:
    """Refuse a checkpoint whose weights are missing or broken, do not fit a `model` or are not finite."""
    files = _existing(checkpoint, _WEIGHTS)
    if not files:
        raise InputError(f"{checkpoint / _WEIGHTS[0]} is missing; {remedy}")
    for file in files:
        with refused(file, remedy):
            _try_to_read(file)
    shards = sorted(checkpoint.glob("model*.safetensors"))
    if model is None or not shards or _existing(checkpoint, (_SHARDED,)):  # DeepSpeed loads its own
        return
    missing, wrong = {name: tensor.shape for name, tensor in model.state_dict().items()}, []
    for file in shards:
        for name, tensor in load_file(file).items():
            if missing.pop(name, None) != tensor.shape or not_finite([(name, tensor)]):
                wrong.append(name)
    if wrong := [*wrong, *missing]:
        what = "missing, left over, of another shape or not finite"
        raise InputError(f"the model in {checkpoint}: weights are {what}: {some(wrong)}; {remedy}")


@contextmanager
def refused(what: str | Path, remedy: str) -> Iterator[None]:
    """Turn whatever reading a broken checkpoint raises inside a `with` block into one line.

    The messages of torch and safetensors are left out: their advice is not for the user.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error}; {remedy}") from error
    except Exception as error:  # reading a broken file can raise anything
        if isinstance(error, RuntimeError) and out_of_memory(error):
            raise
        raise InputError(f"{what} is broken, or of another run; {remedy}") from error


def way_out(checkpoint: Path) -> str:
    """What to do about a broken checkpoint."""
    older = [folder.name for folder in checkpoints(checkpoint.parent) if folder.name != checkpoint.name]
    return f"remove {checkpoint} to go on from {older[-1]}, or {ANEW}" if older else ANEW


def _existing(checkpoint: Path, names: tuple[str, ...]) -> list[Path]:
    return [path for name in names for path in checkpoint.glob(name)]


def _try_to_read(file: Path) -> None:
    """Open a file of a checkpoint: broken ones raise."""
    if file.name == _ARGUMENTS:
        return
    if file.suffix in (".pt", ".pth", ".bin"):
        with safe_globals():
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if file.suffix == ".pth":  # `Trainer` reads it only after training began
            random.Random().setstate(content["python"])
            np.random.RandomState().set_state(content["numpy"])
            torch.Generator().set_state(content["cpu"])
    elif file.suffix == ".safetensors":
        with safe_open(file, framework="pt"):
            pass
    elif file.name.endswith(".index.json"):
        for shard in set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()):
            if not (file.parent / shard).is_file():
                raise InputError(f"{shard} is missing")


def _move_into_place(folder: Path, final: Path) -> None:
    """Rename a folder on the same file system, after its files have reached the disk; what is there goes beside it."""
    for path in folder.rglob("*"):
        if path.is_file():
            _reach_disk(path)
    if final.exists():
        final.replace(folder.with_name(f"{folder.name}.replaced"))
    folder.replace(final)
    _reach_disk(final.parent)


def _reach_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
