"""At equal speed: a method beside PuMer, whose accuracy is interpolated between two of its best settings."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import pi, sqrt
from statistics import fmean
from typing import Any, TypeVar

import numpy as np

from pumer.evaluation.statistics import resampled_means

LEADING = "pumer"
"""The method that the others are compared with."""
T = TypeVar("T")
Scores = Mapping[int | str, tuple[str, float]]
"""Per test example, its source, see `pumer.tasks.Example`, and its score, the mean over seeds."""
SPEEDS: Mapping[str, Callable[[Mapping[str, Any]], tuple[float, float]]] = {
    "at_equal_throughput": lambda cost: (cost["throughput"]["median"], _error(cost["throughput"], cost["rounds"])),
    "at_equal_macs": lambda cost: (cost["macs_fewer"], 0.0),
}
"""What a speed is, of a row's cost and in multiples of the original's, and its standard error: as measured, and as the
shapes have it."""


@dataclass(frozen=True)
class Point:
    """One model of a plot of accuracy against speed.

    Attributes:
        speed: times the original's.
        scores: of its test.
        error: standard error of the speed.
    """

    speed: float
    scores: Scores
    error: float = 0.0

    @property
    def place(self) -> tuple[float, float]:
        """Speed and mean score."""
        return self.speed, fmean(score for _, score in self.scores.values())


def front(items: Iterable[T], place: Callable[[T], tuple[float, float]]) -> list[T]:
    """What no other one is both faster and more accurate than, the slowest first.

    Who wants a speed takes the best setting for it; how bad another one is, is no argument for a rival.

    Args:
        items: in any order.
        place: speed and accuracy of an item.
    """
    found: list[T] = []
    for item in sorted(items, key=place, reverse=True):
        if not found or place(item)[1] > place(found[-1])[1]:
            found.append(item)
    return found[::-1]


def beside(method: Point, line: Sequence[Point]) -> dict[str, Any] | None:
    """How much more accurate a method is than a line of points at its own speed.

    Every example's score is interpolated linearly between the two points of the line next to the method, so that the
    comparison stays paired.

    Args:
        method: what is compared.
        line: of at least two points, the slowest first.

    Returns:
        `mean`; `low` and `high` (95%, bootstrap over the examples, to which is added what a draw of all speeds within
        their errors changes), positive where the method is better; and `beyond`: whether it is faster than the whole
        line, whose fastest point then stands in. None where it is slower than all.
    """
    if method.speed < line[0].speed:
        return None
    beyond = method.speed > line[-1].speed
    between = (pair for pair in pairwise(line) if pair[0].speed <= method.speed <= pair[1].speed)
    slower, faster = next(between, (line[-1], line[-1]))
    share = _share(slower.speed, method.speed, faster.speed)
    differences = [
        score - (1 - share) * slower.scores[number][1] - share * faster.scores[number][1]
        for number, (_, score) in method.scores.items()
    ]
    means = resampled_means(differences, [source for source, _ in method.scores.values()])
    low, high = np.quantile(means - _moved(method, line, len(means)), [0.025, 0.975])
    return {"mean": fmean(differences), "low": float(low), "high": float(high), "beyond": beyond}


def _moved(method: Point, line: Sequence[Point], count: int) -> np.ndarray:
    """How much more accurate the line is at the method's speed when all speeds are drawn anew, (count,)."""
    measured, heights = np.array([point.speed for point in line]), np.array([point.place[1] for point in line])
    random = np.random.default_rng(0)
    speeds = random.normal(measured, [point.error for point in line], (count, len(line)))
    orders = speeds.argsort(axis=1)
    drawn = zip(random.normal(method.speed, method.error, count), speeds, orders, strict=True)
    there = np.array([np.interp(speed, ours[order], heights[order]) for speed, ours, order in drawn])
    return there - np.interp(method.speed, measured, heights)


def _error(quartiles: Mapping[str, float], rounds: int) -> float:
    """Standard error of a median of normal values, from their quartiles, which lie 1.349 deviations apart."""
    deviation = (quartiles["high"] - quartiles["low"]) / 1.349
    return float(sqrt(pi / 2 / rounds) * deviation)


def _share(low: float, value: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.0


def compared(rows: Sequence[dict[str, Any]], scores: Callable[[int], Scores], series: str) -> None:
    """Put `at_equal_throughput` and `at_equal_macs` into the rows of the other series, see `beside`.

    Args:
        rows: of the table, as collected; the original, which has no series, is the slow end of the line.
        scores: of the row at a position.
        series: whose `front` is the line that the others are compared with.
    """
    known = {
        number: scores(number)
        for number, row in enumerate(rows)
        if row["tuned"] and (row["cost"] or not row["changed"])
    }
    for name, speed in SPEEDS.items():
        points = {
            number: Point(times, found, error)
            for number, found in known.items()
            for times, error in [speed(rows[number]["cost"]) if rows[number]["cost"] else (1.0, 0.0)]
        }
        ours = (point for number, point in points.items() if rows[number]["series"] in ("", series))
        line = front(ours, lambda point: point.place)
        for number, point in points.items():
            if rows[number]["series"] not in ("", series):
                rows[number][name] = beside(point, line)
