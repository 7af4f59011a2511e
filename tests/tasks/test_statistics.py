import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pumer.tasks.statistics import bootstrap


@given(st.lists(st.sampled_from([0, 0.3, 0.6, 0.9, 1.0]), min_size=1, max_size=60))
def test_interval_holds_the_mean_and_stays_among_the_values(values):
    interval = bootstrap(values, resamples=500)
    assert interval.mean == pytest.approx(np.mean(values))
    slack = 1e-9
    assert min(values) - slack <= interval.low <= interval.mean + slack
    assert interval.mean - slack <= interval.high <= max(values) + slack


def test_interval_agrees_with_a_bootstrap_that_draws_questions():
    generator = np.random.default_rng(0)
    values = generator.choice([0, 0.3, 1.0], size=400, p=[0.3, 0.2, 0.5])
    means = [generator.choice(values, size=400).mean() for _ in range(4000)]
    interval = bootstrap(values)
    assert [interval.low, interval.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.005)


def test_interval_of_equal_values_is_a_point():
    interval = bootstrap([0.5] * 7)
    assert (interval.low, interval.mean, interval.high) == (0.5, 0.5, 0.5)


def test_same_values_same_interval():
    assert bootstrap([0, 1, 1]) == bootstrap([0, 1, 1])


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        bootstrap([])
