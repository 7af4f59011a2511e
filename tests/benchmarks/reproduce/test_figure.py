import pytest

from benchmarks.reproduce.figure import draw


def interval(value):
    return {"mean": value, "low": value - 0.01, "high": value + 0.01}


def row(series, speed, accuracy):
    cost = {"throughput": {"median": speed, "low": speed - 0.1, "high": speed + 0.1}}
    tested = {"accuracy": interval(accuracy)}
    if not series:
        return {"series": "", "changed": False, "cost": None, "tuned": tested, "untuned": None}
    return {"series": series, "changed": True, "cost": cost, "tuned": tested, "untuned": tested}


@pytest.fixture
def rows():
    return [row("", 1, 0.9), row("pumer", 1.8, 0.89), row("pumer", 1.4, 0.9), row("tome", 1.7, 0.8)]


def test_every_method_that_was_run_stands_in_the_legend(rows):
    picture = draw(rows).decode()
    assert picture.lstrip().startswith("<?xml")
    assert all(f">{name}<" in picture for name in ("pumer", "tome", "original", "fine-tuned"))
    assert draw(rows, "png").startswith(b"\x89PNG")


def test_the_same_figures_make_the_same_file(rows):
    assert draw(rows) == draw(rows)


def test_what_was_not_run_is_left_out(rows):
    rows[3] |= {"tuned": None, "untuned": None}
    assert ">tome<" not in draw(rows).decode()
    for each in rows:
        each["cost"] = None
    assert draw(rows) is None
