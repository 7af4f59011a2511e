"""How a training run ends early: on Ctrl-C, on a full disk; and where it can go on."""

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
"""What only writing can raise, wherever."""
_NUMBER = re.compile(r"os error (\d+)")
_TORCH_WRITES = ("StreamWriter", "iostream", "unexpected pos", "Parent directory", "be opened")
"""What torch's writer says, and its reader does not."""
_FEW_BYTES = 2**20


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after the current step was saved; the message says how to continue."""


class StopOnSignal(TrainerCallback):
    """Ctrl-C and SIGTERM let the current step end, save it and stop; a second one stops at once.

    Where the run evaluates at that very step, it does so first: what follows must not depend on the interruption. With
    several processes, all stop at the same step, whichever got the signal.
    """

    def __init__(self) -> None:
        self.received = False
        self.stopping = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals for the length of a `with` block; only the main thread can."""
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

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop, now that the step is saved.

        Raises:
            Interrupted: always, once a signal was received and there are steps left.
        """
        self.stopping = self.stopping or self._agreed(args)
        if self.stopping and state.global_step < state.max_steps:
            folder = checkpoint_folder(Path(args.output_dir), state.global_step)
            raise Interrupted(f"interrupted; step {state.global_step} is saved in {folder}: the same command continues")

    def _agreed(self, args: TrainingArguments) -> bool:
        """Whether any process got a signal."""
        if args.world_size == 1:
            return self.received
        flag = torch.tensor(int(self.received), device=args.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)


@contextmanager
def write_errors_stop(output: Path) -> Iterator[None]:
    """Turn what a full disk, a limit on file sizes or a protected folder raises inside a `with` block into one line.

    Args:
        output: the run's folder.

    Raises:
        InputError: naming the reason and the last complete checkpoint.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _why_not_written(error, output)
        if reason is None:
            raise
        raise InputError(
            f"{output} cannot be written: {reason}; {where_to_go_on(output)}; "
            "fix the cause and run the same command again"
        ) from error


def _why_not_written(error: Exception, output: Path) -> str | None:
    """Why something could not be written into a folder; None where the error is about something else."""
    number = error.errno if isinstance(error, OSError) else None
    if found := _NUMBER.search(str(error)):  # as safetensors says it
        number = int(found[1])
    if number in _WRITING:
        return _WRITING[number]
    if isinstance(error, OSError):
        inside = error.filename is not None and Path(os.fsdecode(error.filename)).is_relative_to(output)
        return error.strerror if inside else None
    if not (isinstance(error, SafetensorError) or any(words in str(error) for words in _TORCH_WRITES)):
        return None
    if shutil.disk_usage(next(there for there in (output, *output.parents) if there.exists())).free < _FEW_BYTES:
        return _WRITING[errno.ENOSPC]  # torch does not say why it could not write
    return first_line(error)


def where_to_go_on(output: Path) -> str:
    """What to tell about the last complete checkpoint of a run."""
    found = last_checkpoint(output)
    return "no checkpoint was complete yet" if found is None else f"the last complete checkpoint is {found}"
