"""`pumer` commands as processes of their own, several at once, that can be stopped together."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from pumer.utils.errors import InputError

Runner = Callable[[Sequence[str], Path, int], str]
"""Runs a command: from the arguments of `pumer`, its log file, and its threads, to its standard output."""

_PATIENCE = 60  # seconds that a command has to end after Ctrl-C, which lets a training save its step


class Commands:
    """The commands that run now."""

    def __init__(self, program: Sequence[str] = ("-m", "benchmarks.reproduce.child")) -> None:
        """None yet.

        Args:
            program: arguments of Python before those of a command.
        """
        self._program = program
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False
        self._stdin, self._held = os.pipe()  # the writing end closes when this process ends

    def run(self, command: Sequence[str], log: Path, threads: int) -> str:
        """Run one command to its end; see `Runner`.

        Raises:
            InputError: when it fails, with the last line it said and the name of the log.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        with log.open("w", encoding="utf-8") as said:
            with self._lock:
                if self._stopped:
                    raise InputError("interrupted before it began")
                process = subprocess.Popen(
                    [sys.executable, *self._program, *command],
                    stdin=self._stdin,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    text=True,
                    env=environment,
                    start_new_session=True,  # Ctrl-C reaches it through `stop` alone
                )
                self._running.add(process)
            printed, _ = process.communicate()
            with self._lock:
                self._running.discard(process)
        if process.returncode != 0:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = lines[-1] if lines else f"it ended with {process.returncode} and said nothing"
            raise InputError(f"{last.removeprefix('error: ')} (see {log})")
        return printed

    def stop(self) -> None:
        """Interrupt all that runs, and wait until it has ended."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            try:
                process.wait(_PATIENCE)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.kill()


def cores() -> int:
    """Processor cores this process may use; OMP_NUM_THREADS, if that is less."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(usable, int(asked)) if asked.isdigit() and int(asked) > 0 else usable
