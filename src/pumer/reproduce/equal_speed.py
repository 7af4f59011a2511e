"""At equal speed: a method beside PuMer, whose accuracy is interpolated between two of its strengths."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from pumer.tasks.statistics import bootstrap

Scores = Mapping[int | str, tuple[str, float]]
"""Per test example, its source, see `pumer.tasks.Example`, and its score, the mean over seeds."""
SPEEDS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "at_equal_throughput": lambda cost: float(cost["throughput"]["median"]),
    "at_equal_macs": lambda cost: float(cost["macs_fewer"]),
}
"""What a speed is, of a row's cost and in multiples of the original's: as measured, and as the shapes have it."""


@dataclass(frozen=True)
class Point:
    """One model of a plot of accuracy against speed.

    Attributes:
        speed: times the original's.
        scores: of its test.
    """

    speed: float
    scores: Scores


def beside(method: Point, line: Sequence[Point]) -> dict[str, Any] | None:
    """How much more accurate a method is than a line of points at its own speed.

    Every example's score is interpolated linearly between the two points of the line next to the method, so that the
    comparison stays paired. The speeds are taken as they are: the interval knows nothing of their spread.

    Args:
        method: what is compared.
        line: of at least two points, in any order.

    Returns:
        `mean`, `low` and `high` (95%, bootstrap over the examples), positive where the method is better; and `beyond`:
        whether it is faster than the whole line, whose fastest point then stands in. None where it is slower than all.
    """
    ordered = sorted(line, key=lambda point: point.speed)
    if method.speed < ordered[0].speed:
        return None
    beyond = method.speed > ordered[-1].speed
    slower, faster = next(
        (pair for pair in pairwise(ordered) if pair[0].speed <= method.speed <= pair[1].speed), ordered[-1:] * 2
    )
    share = _share(slower.speed, method.speed, faster.speed)
    differences = [
        score - (1 - share) * slower.scores[number][1] - share * faster.scores[number][1]
        for number, (_, score) in method.scores.items()
    ]
    return asdict(bootstrap(differences, [source for source, _ in method.scores.values()])) | {"beyond": beyond}


def _share(low: float, value: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.0


def compared(rows: Sequence[dict[str, Any]], scores: Callable[[int], Scores], series: str) -> None:
    """Put `at_equal_throughput` and `at_equal_macs` into the rows of the other series, see `beside`.

    Args:
        rows: of the table, as collected; the original, which has no series, is the slow end of the line.
        scores: of the row at a position.
        series: the line that the others are compared with.
    """
    known = {
        number: scores(number)
        for number, row in enumerate(rows)
        if row["tuned"] and (row["cost"] or not row["changed"])
    }
    for name, speed in SPEEDS.items():
        points = {
            number: Point(speed(rows[number]["cost"]) if rows[number]["cost"] else 1.0, found)
            for number, found in known.items()
        }
        line = [point for number, point in points.items() if rows[number]["series"] in ("", series)]
        for number, point in points.items():
            if rows[number]["series"] not in ("", series):
                rows[number][name] = beside(point, line)
