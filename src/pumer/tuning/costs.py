"""What a schedule costs: known at once from a fit to a few that were planned and timed, and measured for the best."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pumer.reducers import NoReduction, ReductionConfig, ToMeConfig
from pumer.reducers.base import Place
from pumer.reducers.pumer import PuMerReducer
from pumer.reducers.shortening.base import RatioShorteningConfig
from pumer.reducers.tables import Rule

Tokens = tuple[int, int]
"""Text and image tokens."""


@dataclass(frozen=True)
class Row:
    """One layer: the tokens that enter it, those that leave it, whether it reduces, and whether text runs apart."""

    place: Place
    before: Tokens
    after: Tokens
    reduces: bool
    apart: bool = False


@dataclass(frozen=True)
class Path:
    """The way of an example's tokens through the layers of a model.

    Attributes:
        stacks: Layers of each stack that is counted, in the order in which they run.
        text: Text tokens.
        images: Image tokens of each image.
        as_one: Whether text and image are one stream in fusion layers, which a method without regard to modality merges
            as a whole; else they are two.
    """

    stacks: Mapping[str, int]
    text: int
    images: tuple[int, ...]
    as_one: bool = False

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.text + sum(self.images)

    def rows(self, config: ReductionConfig) -> Iterator[Row]:
        """What becomes of the tokens, layer by layer."""
        reducers, image = config.reducers(), sum(self.images)
        if isinstance(config, RatioShorteningConfig):
            image = sum(map(config.kept, self.images))
        text = 0
        for stack, layers in self.stacks.items():
            text = text if stack == "vision" else self.text
            now = (text, image)
            for layer in range(layers):
                reducer = reducers.get((stack, layer))
                left = now if reducer is None else self._left(config, reducer, now, stack)
                yield Row((stack, layer), now, left, reducer is not None, stack == "fusion" and not self.as_one)
                now = left
            image = now[1]

    def _left(self, config: ReductionConfig, reducer: Any, now: Tokens, stack: str) -> Tokens:
        rule: Rule = reducer.step if isinstance(reducer, PuMerReducer) else reducer
        if isinstance(config, ToMeConfig) and self.as_one and stack == "fusion":
            return 0, rule.left(sum(now))
        return rule.text_left(now[0]), rule.left(now[1])


@dataclass(frozen=True)
class Table:
    """What a layer costs by the tokens in it: exact but for what the reductions themselves cost, which is fitted.

    Attributes:
        weights: By stack, of the columns of `columns`.
        constant: What is spent outside the layers.
    """

    weights: Mapping[str, Sequence[float]]
    constant: float

    @classmethod
    def fit(cls, found: Sequence[tuple[Sequence[Row], Sequence[float], float]]) -> "Table":
        """The table of a model, by least squares, from schedules that were planned.

        Args:
            found: Of each schedule the rows of its layers, what each layer costs, and what the whole model costs: MACs,
                or bytes of the cache.

        Returns:
            Costs in the same unit.
        """
        weights = {}
        for stack in dict.fromkeys(row.place[0] for row in found[0][0]):
            taken = [
                (columns(row), value)
                for rows, values, _ in found
                for row, value in zip(rows, values, strict=True)
                if row.place[0] == stack
            ]
            given, costs = np.array([each for each, _ in taken]), np.array([value for _, value in taken])
            scale = np.maximum(np.abs(given).max(axis=0), 1.0)
            solved = np.linalg.lstsq(given / scale, costs, rcond=1e-9)[0] / scale
            weights[stack] = solved.tolist()
        return cls(weights, float(np.mean([whole - sum(values) for _, values, whole in found])))

    def cost(self, rows: Sequence[Row]) -> float:
        """The cost of all layers, and of what is outside."""
        return self.constant + sum(float(np.dot(self.weights[row.place[0]], columns(row))) for row in rows)


def columns(row: Row) -> list[float]:
    """What the cost of a layer is linear in: tokens, their pairs, tokens after it, and those that a reduction reads."""
    (text, image), (text_left, image_left) = row.before, row.after
    entering, read = text + image, (text + image) * row.reduces
    if not row.apart:
        return [entering, entering**2, text_left + image_left, read, read**2]
    return [text, image, text**2, image**2, text * image, text_left, image_left, read, read**2]


@dataclass(frozen=True)
class Gauge:
    """How many times less a schedule costs than the unreduced model, before it is measured.

    Attributes:
        path: The way of the tokens.
        table: Of MACs, or of bytes of the cache.
        follows: Of the time, the share that follows the table; 1 where cost is no time.
        each: What a reduction adds, as a share of the unreduced model's time.
        token: What it adds for the tokens that enter it, if all of an example's did.
    """

    path: Path
    table: Table
    follows: float = 1.0
    each: float = 0.0
    token: float = 0.0

    def __call__(self, config: ReductionConfig) -> float:
        """The ratio of the unreduced model's cost to the schedule's."""
        share, count, entering = self._parts(config)
        return 1 / max(1 - self.follows * (1 - share) + self.each * count + self.token * entering, 1e-6)

    def _parts(self, config: ReductionConfig) -> tuple[float, int, float]:
        rows = list(self.path.rows(config))
        share = self.table.cost(rows) / self.table.cost(list(self.path.rows(NoReduction())))
        entering = [sum(row.before) / self.path.tokens for row in rows if row.reduces]
        return share, len(entering), sum(entering)

    def fitted(self, seconds: Sequence[tuple[ReductionConfig, float]]) -> "Gauge":
        """The gauge of time, by least squares; no part of the time becomes negative.

        Args:
            seconds: Schedules with the time they take, as a share of the unreduced model's (no unit).
        """
        parts = np.array([self._parts(config) for config, _ in seconds])
        given = np.stack([parts[:, 0] - 1, parts[:, 1], parts[:, 2]], axis=1)
        wanted, used = np.array([share for _, share in seconds]) - 1, [0, 1, 2]
        while True:
            solved = np.linalg.lstsq(given[:, used], wanted, rcond=None)[0]
            if (solved >= 0).all() or len(used) == 1:
                break
            used.pop(int(solved.argmin()))
        found = dict(zip(used, np.maximum(solved, 0.0).tolist(), strict=True))
        return Gauge(self.path, self.table, *(found.get(at, 0.0) for at in range(3)))

    def error(self, seconds: Sequence[tuple[ReductionConfig, float]]) -> float:
        """The largest deviation of a gain from a measured one, as a share of it.

        Args:
            seconds: As those of `fitted`.
        """
        return max(abs(self(config) * share - 1) for config, share in seconds)


def meeting(
    shapes: Mapping[str, Callable[[float], ReductionConfig | None]],
    measure: Callable[[Mapping[str, ReductionConfig]], Mapping[str, float]],
    target: float,
    rounds: int = 4,
) -> dict[str, ReductionConfig]:
    """The weakest schedule of each shape that meets a budget when it is measured, as far as a few rounds find it.

    What it measured chose the schedules, so it is not returned: measure them once more for a report.

    Args:
        shapes: By name, from a gain that is aimed at to a schedule; None where the shape reaches no such gain.
        measure: From schedules to what they reach, as a share of the budget: 1 or more meets it.
        target: The gain that is aimed at first.
        rounds: Measurements at most.

    Returns:
        Schedules by name; of a shape that did not meet the budget, the one that came nearest.
    """
    aims = dict.fromkeys(shapes, target)
    tried: dict[str, list[tuple[float, ReductionConfig]]] = {}
    for _ in range(rounds):
        given = {name: shapes[name](aim) for name, aim in aims.items()}
        configs = {name: config for name, config in given.items() if config is not None}
        aims = {name: aims[name] for name in configs}
        for name, reached in measure(configs).items() if configs else ():
            tried.setdefault(name, []).append((reached, configs[name]))
            aims[name] = max(1.0, aims[name] / reached * (MARGIN if reached < 1 else 1.0))
            if 1 <= reached <= SLACK:
                del aims[name]
    return {name: _nearest(each) for name, each in tried.items()}


def _nearest(tried: Sequence[tuple[float, ReductionConfig]]) -> ReductionConfig:
    """Of schedules with what they reach, the one that reaches 1 most closely, from above where one does."""
    enough = [each for each in tried if each[0] >= 1]
    return min(enough, key=_reached)[1] if enough else max(tried, key=_reached)[1]


def _reached(each: tuple[float, ReductionConfig]) -> float:
    return each[0]


SLACK = 1.03
"""A schedule that gains more than asked for by more than this is made weaker."""
MARGIN = 1.01
"""Schedules are made so much stronger than seems needed: measurements scatter."""
