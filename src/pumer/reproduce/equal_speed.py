"""At equal throughput: a method beside PuMer, whose accuracy is interpolated between two of its strengths."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from pumer.tasks.statistics import bootstrap

Scores = Mapping[int | str, tuple[str, float]]
"""Per test example, its source, see `pumer.tasks.Example`, and its score, the mean over seeds."""


@dataclass(frozen=True)
class Point:
    """One model of a plot of accuracy against throughput.

    Attributes:
        throughput: times the original's.
        scores: of its test.
    """

    throughput: float
    scores: Scores


def beside(method: Point, line: Sequence[Point]) -> dict[str, float] | None:
    """How much more accurate a method is than a line of points at its own throughput.

    Every example's score is interpolated linearly between the two points of the line next to the method, so that the
    comparison stays paired.

    Args:
        method: what is compared.
        line: of at least two points, in any order.

    Returns:
        `mean`, `low` and `high` (95%, bootstrap over the examples), positive where the method is better; None where the
        line does not reach its throughput.
    """
    ordered = sorted(line, key=lambda point: point.throughput)
    for slower, faster in pairwise(ordered):
        if slower.throughput <= method.throughput <= faster.throughput:
            share = _share(slower.throughput, method.throughput, faster.throughput)
            differences = [
                score - (1 - share) * slower.scores[number][1] - share * faster.scores[number][1]
                for number, (_, score) in method.scores.items()
            ]
            return asdict(bootstrap(differences, [source for source, _ in method.scores.values()]))
    return None


def _share(low: float, value: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.0


def compared(rows: Sequence[dict[str, Any]], scores: Callable[[int], Scores], series: str) -> None:
    """Put `at_equal_throughput` into the rows of the other series, see `beside`.

    Args:
        rows: of the table, as collected; the original, which has no series, is the slow end of the line.
        scores: of the row at a position.
        series: the line that the others are compared with.
    """
    points = {
        number: Point(row["cost"]["throughput"]["median"] if row["cost"] else 1.0, scores(number))
        for number, row in enumerate(rows)
        if row["tuned"] and (row["cost"] or not row["changed"])
    }
    line = [point for number, point in points.items() if rows[number]["series"] in ("", series)]
    for number, point in points.items():
        if rows[number]["series"] not in ("", series):
            rows[number]["at_equal_throughput"] = beside(point, line)
