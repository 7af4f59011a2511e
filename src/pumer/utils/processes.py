"""Which of several processes this is, known before any library asks; how they part, and what Ctrl-C does to them."""

from __future__ import annotations

import os
import signal
import sys
from functools import cache

TYPE_CHECKING = False  # typing's own takes a while to import, in which Ctrl-C would still be answered by a traceback
if TYPE_CHECKING:
    from types import FrameType

_INTERRUPTED = 130


def is_main_process() -> bool:
    """Whether this process speaks to the user: the first of those that `torchrun` or `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


@cache
def is_first_to_report() -> bool:
    """Whether no other process of the run has asked this before, as it ends: one line is enough for all of them."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from datetime import timedelta

    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=10)))
        return int(store.add("pumer reported", 1)) == 1
    except (RuntimeError, ValueError):  # the process that holds the store is gone, or there is none
        return True


def leave_group() -> None:
    """Take the process group apart, if there is one: a process that ends inside it is now and then aborted."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def own_interrupts() -> None:
    """From now on Ctrl-C ends the process at once, in one line: what a command does before its work, and after it.

    For the entry point of the command line; a program that imports the package keeps its own handler.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a shell has it for what runs in the background
        signal.signal(signal.SIGINT, _end)


def interrupts_raise() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, for work that cleans up after itself; see `own_interrupts`."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, _raise)


def interrupts_end_at_once() -> None:
    """Go back from `interrupts_raise`, when the work is done."""
    if signal.getsignal(signal.SIGINT) is _raise:
        signal.signal(signal.SIGINT, _end)


def _raise(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end(number: int, frame: FrameType | None) -> None:
    try:
        sys.stdout.flush()
    finally:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            os.write(2, b"interrupted\n")
        os._exit(_INTERRUPTED)
