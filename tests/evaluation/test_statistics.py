import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pumer.evaluation import statistics
from pumer.evaluation.statistics import bootstrap


@given(st.lists(st.sampled_from([0, 0.3, 0.6, 0.9, 1.0]), min_size=1, max_size=60))
def test_interval_holds_the_mean_and_stays_among_the_values(values):
    interval = bootstrap(values, resamples=500)
    assert interval["mean"] == pytest.approx(np.mean(values))
    slack = 1e-9
    assert min(values) - slack <= interval["low"] <= interval["mean"] + slack
    assert interval["mean"] - slack <= interval["high"] <= max(values) + slack


def test_interval_agrees_with_a_bootstrap_that_draws_questions():
    generator = np.random.default_rng(0)
    values = generator.choice([0, 0.3, 1.0], size=400, p=[0.3, 0.2, 0.5])
    means = [generator.choice(values, size=400).mean() for _ in range(4000)]
    interval = bootstrap(values)
    assert [interval["low"], interval["high"]] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.005)


def test_values_of_one_source_are_drawn_together():
    """Against a bootstrap that draws whole sources, of different size."""
    generator = np.random.default_rng(1)
    sources = np.repeat(np.arange(80), generator.integers(1, 8, 80))
    values = np.clip(generator.normal(0.5, 0.3, 80)[sources] + generator.normal(0, 0.05, len(sources)), 0, 1).round(3)
    parts = [values[sources == source] for source in range(80)]
    drawn = [np.concatenate([parts[index] for index in generator.integers(0, 80, 80)]).mean() for _ in range(4000)]
    interval = bootstrap(values, sources.tolist())
    assert interval["mean"] == pytest.approx(values.mean())
    assert [interval["low"], interval["high"]] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)
    alone = bootstrap(values)
    assert interval["high"] - interval["low"] > 1.5 * (alone["high"] - alone["low"])
    assert bootstrap(values, range(len(values))) == alone


def test_what_is_held_at_once_changes_nothing(monkeypatch):
    values = np.random.default_rng(2).random(50)
    whole = bootstrap(values, resamples=300)
    monkeypatch.setattr(statistics, "_CELLS", 50 * 7)
    assert bootstrap(values, resamples=300) == whole


def test_interval_of_equal_values_is_a_point():
    interval = bootstrap([0.5] * 7)
    assert (interval["low"], interval["mean"], interval["high"]) == (0.5, 0.5, 0.5)
    assert statistics.percent(interval) == "50.0"
    assert statistics.percent(bootstrap([0.0, 1.0])) == "50.0 [0.0, 100.0]"


def test_same_values_same_interval():
    assert bootstrap([0, 1, 1]) == bootstrap([0, 1, 1])


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        bootstrap([])
