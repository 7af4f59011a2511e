"""A `pumer` command that ends when the process that started it does, however that ended."""

import os
import threading

from pumer.cli import app


def main() -> None:
    """Run the command line; standard input is a pipe whose other end the starting process holds."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    app()


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)  # at once, as its parent: what is half done is found and continued


if __name__ == "__main__":
    main()
