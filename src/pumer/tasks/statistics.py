"""How sure a mean score is: percentile bootstrap intervals, also for the difference of two runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """In percent, as tables print it: `81.2 [80.1, 82.3]`."""
        return f"{100 * self.mean:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def bootstrap(values: Sequence[float], resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean of per-question values and its 95% interval over resampled questions.

    For the difference of two runs on the same questions, give the per-question differences (paired bootstrap).

    Args:
        values: one value per question, such as scores in [0, 1] or differences of scores.
        resamples: number of bootstrap samples.
        seed: of the resampling; the same values give the same interval.
    """
    # Scores take few distinct values: a bootstrap sample is a multinomial draw of their frequencies.
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64).round(9), return_counts=True)
    total = int(counts.sum())
    if not total:
        raise ValueError("a mean needs at least one value")
    draws = np.random.default_rng(seed).multinomial(total, counts / total, size=resamples)
    means = draws @ distinct / total
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(counts @ distinct / total), float(low), float(high))
