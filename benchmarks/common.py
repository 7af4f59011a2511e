"""Shared by the scripts of this folder: the place of the result files, and command-line parsing."""

import argparse
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of a script's arguments, whose help is the script's docstring."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
