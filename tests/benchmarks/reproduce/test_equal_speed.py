from dataclasses import replace

import numpy as np
import pytest

from benchmarks.reproduce.equal_speed import SPEEDS, Point, beside, compared, front


def scores(*values):
    """Of examples that share nothing."""
    return {number: (str(number), value) for number, value in enumerate(values)}


SLOW = Point(1.0, scores(1.0, 1.0, 1.0, 1.0))
FAST = Point(2.0, scores(0.0, 1.0, 0.0, 1.0))


def test_at_a_point_of_the_line_it_is_the_paired_difference():
    method = Point(2.0, scores(1.0, 1.0, 1.0, 1.0))
    assert beside(method, [SLOW, FAST])["mean"] == 0.5
    same = beside(Point(1.0, SLOW.scores), [SLOW, FAST])
    assert same == {"mean": 0.0, "low": 0.0, "high": 0.0, "beyond": False}


def test_between_two_points_each_example_is_interpolated():
    quarter = beside(Point(1.25, scores(0.0, 1.0, 0.75, 1.0)), [SLOW, FAST])
    assert quarter["mean"] == pytest.approx((-0.75 + 0 + 0 + 0) / 4)
    assert quarter["low"] <= quarter["mean"] <= quarter["high"]


def test_what_is_faster_than_the_line_stands_beside_its_fastest_point():
    beyond = beside(Point(2.1, SLOW.scores), [SLOW, FAST])
    assert beyond["beyond"] and beyond["mean"] == 0.5
    assert beside(Point(0.9, SLOW.scores), [SLOW, FAST]) is None


def test_the_front_leaves_out_what_another_point_beats_in_both():
    beaten, equal = Point(1.5, scores(0.0, 0.0, 0.0, 1.0)), Point(1.0, scores(1.0, 1.0, 1.0, 0.0))
    assert front([FAST, beaten, SLOW, equal], lambda point: point.place) == [SLOW, FAST]
    assert front([beaten], lambda point: point.place) == [beaten]


def test_what_is_not_sure_of_a_speed_widens_the_interval():
    method = Point(1.5, scores(0.5, 1.0, 0.5, 1.0))
    sure, unsure = beside(method, [SLOW, FAST]), beside(replace(method, error=0.1), [SLOW, FAST])
    assert sure == {"mean": 0.0, "low": 0.0, "high": 0.0, "beyond": False}
    assert unsure["mean"] == 0.0
    slope = -0.5  # of the line: points of accuracy per multiple of speed
    assert unsure["low"] == pytest.approx(1.96 * 0.1 * slope, rel=0.05)
    assert unsure["high"] == pytest.approx(-unsure["low"], rel=0.05)
    swapped = beside(method, [SLOW, replace(FAST, error=1.0)])  # a draw may put the fast point before the slow one
    assert swapped["low"] < 0 < swapped["high"]


def test_the_error_of_a_speed_is_that_of_a_median():
    ratios = np.random.default_rng(0).normal(1.7, 0.1, (4000, 20))
    low, high = np.quantile(ratios, [0.25, 0.75])
    quartiles = {"median": 1.7, "low": low, "high": high}
    _, error = SPEEDS["at_equal_throughput"]({"throughput": quartiles, "rounds": 20})
    assert error == pytest.approx(np.median(ratios, axis=1).std(), rel=0.1)


def row(series, throughput, found):
    cost = None
    if throughput is not None:
        speed = {"median": throughput, "low": throughput - 0.05, "high": throughput + 0.05}
        cost = {"throughput": speed, "rounds": 20, "macs_fewer": throughput**2}
    tuned = {"seeds": 1} if found else None
    return {"series": series, "changed": bool(series), "cost": cost, "tuned": tuned, "scores": found}


def test_only_other_methods_that_were_run_and_timed_are_compared():
    rows = [row("", None, SLOW.scores), row("pumer", 2.0, FAST.scores), row("tome", 1.5, SLOW.scores)]
    rows += [row("tome", 1.5, None), row("cls", None, SLOW.scores)]
    compared(rows, lambda number: rows[number]["scores"], "pumer")
    assert rows[2]["at_equal_throughput"]["mean"] == pytest.approx(0.25)
    assert rows[2]["at_equal_macs"]["mean"] == pytest.approx(0.5 * 1.25 / 3)
    assert [number for number, each in enumerate(rows) if "at_equal_throughput" in each] == [2]
