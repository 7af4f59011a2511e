"""A `pumer` command that ends when the process that started it does, however that ended."""

import os
import runpy
import sys
import threading
from collections.abc import Callable
from typing import Any


def pumer() -> None:
    """The command line, as `python -m pumer`."""
    sys.argv[0] = "pumer"
    runpy.run_module("pumer", run_name="__main__")


def main(command: Callable[[], Any] = pumer) -> None:
    """Run a command; standard input is a pipe whose other end the starting process holds."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    command()


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)  # at once, as its parent: what is half done is found and continued


if __name__ == "__main__":
    main()
