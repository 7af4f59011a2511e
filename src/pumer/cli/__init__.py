"""The command line: parse, check what was given, and only then load the libraries and call the job."""

# isort: off
from pumer.cli import measuring, training, answering, deploying, data  # in the order of `pumer --help`
from pumer.cli.base import app
# isort: on

__all__ = ["answering", "app", "data", "deploying", "main", "measuring", "training"]


def main() -> None:
    """The command line, in this process."""
    app()
