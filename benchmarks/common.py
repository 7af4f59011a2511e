"""Shared by the scripts of this folder: the place of the result files, command-line parsing, paired differences."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pumer.evaluation.statistics import bootstrap

RESULTS = Path(__file__).parent / "results"


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of a script's arguments, whose help is the script's docstring."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def difference(scores: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`mean`, `low` and `high` of the paired difference of two runs on the same examples."""
    known = {each["id"]: each["score"] for each in others}
    return bootstrap([each["score"] - known[each["id"]] for each in scores], [each["source"] for each in scores])
