"""How sure a mean score is: percentile bootstrap intervals, also for the difference of two runs."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

_CELLS = 5_000_000
"""Counts held at once: 40 MB, however many images differ."""


def percent(interval: Mapping[str, Any]) -> str:
    """A result of `bootstrap` in percent, as tables print it: `81.2 [80.1, 82.3]`.

    Where all values are alike, as of a few examples that are all right, it says nothing about others: no interval.
    """
    mean, low, high = (f"{100 * interval[name]:.1f}" for name in ("mean", "low", "high"))
    return mean if interval["low"] == interval["high"] else f"{mean} [{low}, {high}]"


def bootstrap(
    values: Sequence[float], sources: Sequence[Hashable] | None = None, resamples: int = 10_000
) -> dict[str, float]:
    """`mean` of per-question values, and `low` and `high` of its 95% interval; arguments as of `resampled_means`."""
    low, high = np.quantile(resampled_means(values, sources, resamples), [0.025, 0.975])
    return {"mean": float(np.asarray(values, dtype=np.float64).mean()), "low": float(low), "high": float(high)}


def resampled_means(
    values: Sequence[float], sources: Sequence[Hashable] | None = None, resamples: int = 10_000
) -> np.ndarray:
    """Means of per-question values, (resamples,), over resampled sources, such as images.

    Questions about one image are no independent evidence: where they share a source they are drawn together; without
    sources, every question is its own. For the difference of two runs on the same questions, give the per-question
    differences (paired bootstrap).
    """
    if not len(values):
        raise ValueError("a mean needs at least one value")
    numbers = {source: number for number, source in enumerate(dict.fromkeys(sources or ()))}
    index = np.array([numbers[source] for source in sources]) if sources else np.arange(len(values))
    given = np.asarray(values, dtype=np.float64)
    sums, sizes = np.bincount(index, given).round(9), np.bincount(index)
    # Few sources differ in sum and size: a bootstrap sample is a multinomial draw of how often each kind occurs.
    kinds, counts = np.unique(np.stack([sums, sizes], 1), axis=0, return_counts=True)
    total = int(counts.sum())
    generator, means = np.random.default_rng(0), np.empty(resamples)
    at_once = max(1, _CELLS // len(counts))
    for start in range(0, resamples, at_once):
        draws = generator.multinomial(total, counts / total, size=min(at_once, resamples - start))
        means[start : start + at_once] = (draws @ kinds[:, 0]) / (draws @ kinds[:, 1])
    return means
