"""Time limits inside a process: for a part of a benchmark, and for one compilation in it."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

AGAIN = 5.0
"""Seconds until an error is raised once more: one that is raised inside a destructor is lost."""


class OutOfTime(BaseException):
    """A part's time is over. No `Exception`, so that nothing takes it for the failure of a row."""


@contextmanager
def time_limit(seconds: float, error: BaseException) -> Iterator[None]:
    """Raise an error in the main thread once the time of a ``with`` block is over; blocks may be nested."""
    outer, _ = signal.getitimer(signal.ITIMER_REAL)
    if 0 < outer <= seconds:
        yield
        return
    start, handler = time.monotonic(), signal.getsignal(signal.SIGALRM)

    def ring(*_: Any) -> None:
        raise error

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if outer:
            signal.setitimer(signal.ITIMER_REAL, max(outer - (time.monotonic() - start), 1e-3), AGAIN)
