"""Graceful shutdown: on Ctrl-C and SIGTERM, on a full disk, and on a loss that is NaN."""

import errno
import logging
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from pumer.training.checkpoints import checkpoint_folder, last_checkpoint
from pumer.utils.errors import InputError
from pumer.utils.files import first_line

logger = logging.getLogger(__name__)

_WRITING = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would be larger than the limit on file sizes (ulimit -f)",
}
"""Errors that only writing can raise, wherever."""
_NUMBER = re.compile(r"os error (\d+)")  # in the texts of safetensors
_TORCH_WRITES = ("StreamWriter", "iostream", "unexpected pos", "Parent directory", "be opened")
"""Words of torch's writer that its reader does not use."""
_FEW_BYTES = 2**20


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after the current step was saved; the message says how to continue."""


class StopOnSignal(TrainerCallback):
    """On Ctrl-C and SIGTERM, finishes the current step, saves it and stops; a second signal stops at once.

    Where the run evaluates at that very step, it does so first: the rest must not depend on the interruption. With
    several processes, all stop at the same step, whichever got the signal.
    """

    def __init__(self, output: Path) -> None:
        self.output = output  # the run's folder
        self.received = self.stopping = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals for the length of a `with` block; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True
        logger.warning("stopping as soon as this step is saved; once more stops at once")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint of this step, unless the end of the epoch or of the run is about to write one."""
        self.stopping = self.stopping or self._agreed(args)
        saved_anyway = args.save_strategy == SaveStrategy.EPOCH and state.epoch == int(state.epoch or 0)
        if self.stopping and not saved_anyway and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Stop with `Interrupted`, now that the step is saved, where a signal was received and there are steps left."""
        self.stopping = self.stopping or self._agreed(args)
        if self.stopping and state.global_step < state.max_steps:
            folder = checkpoint_folder(self.output, state.global_step)
            raise Interrupted(f"interrupted; step {state.global_step} is saved in {folder}: the same command continues")

    def _agreed(self, args: TrainingArguments) -> bool:
        """Whether any process got a signal."""
        if args.world_size == 1:
            return self.received
        flag = torch.tensor(int(self.received), device=args.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)


def diverged(what: str, step: int, output: Path) -> InputError:
    """The error for a value that is NaN or infinite, in a run's folder."""
    remedy = "lower optimizer.lr, or clip with optimizer.max_grad_norm=1"
    return InputError(f"{what} at step {step}; {resume_point(output)}; {remedy}")


def resume_point(output: Path) -> str:
    """The last complete checkpoint of a run, for a message."""
    found = last_checkpoint(output)
    return "no checkpoint was complete yet" if found is None else f"the last complete checkpoint is {found}"


@contextmanager
def write_errors_stop(output: Path) -> Iterator[None]:
    """Turn what a full disk, a limit on file sizes or a protected folder raises inside a `with` block into one line."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _why_not_written(error, output)
        if reason is None:
            raise
        remedy = f"{resume_point(output)}; fix the cause and run the same command again"
        raise InputError(f"{output} cannot be written: {reason}; {remedy}") from error


def _why_not_written(error: Exception, output: Path) -> str | None:
    """Why a folder could not be written; None where the error is about something else."""
    number = error.errno if isinstance(error, OSError) else None
    if found := _NUMBER.search(str(error)):
        number = int(found[1])
    if number in _WRITING:
        return _WRITING[number]
    if isinstance(error, OSError):
        inside = error.filename is not None and Path(os.fsdecode(error.filename)).is_relative_to(output)
        return error.strerror if inside else None
    if not (isinstance(error, SafetensorError) or any(words in str(error) for words in _TORCH_WRITES)):
        return None
    if shutil.disk_usage(next(path for path in (output, *output.parents) if path.exists())).free < _FEW_BYTES:
        return _WRITING[errno.ENOSPC]  # torch does not report why it could not write
    return first_line(error)
