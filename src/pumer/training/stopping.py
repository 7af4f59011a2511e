"""How a training run ends early: on Ctrl-C, on a full disk; and where it can go on."""

import errno
import logging
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

from pumer.errors import InputError
from pumer.training.checkpoints import checkpoint_folder, last_checkpoint

logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)
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
def full_disk_stops(output: Path) -> Iterator[None]:
    """Turn whatever a full disk raises inside a `with` block into one line.

    Args:
        output: the run's folder.

    Raises:
        InputError: naming the last complete checkpoint.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _disk_is_full(error, output):
            raise
        raise InputError(
            f"the disk of {output} is full; {where_to_go_on(output)}; free some space and run the same command again"
        ) from error


def _disk_is_full(error: Exception, output: Path) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    if "No space left" in str(error) or "Disk quota" in str(error):
        return True
    wrote = isinstance(error, SafetensorError) or "PytorchStreamWriter" in str(error) or "iostream" in str(error)
    return wrote and shutil.disk_usage(output).free < _FEW_BYTES  # torch does not say why it could not write


def where_to_go_on(output: Path) -> str:
    """What to tell about the last complete checkpoint of a run."""
    found = last_checkpoint(output)
    return "no checkpoint was complete yet" if found is None else f"the last complete checkpoint is {found}"
