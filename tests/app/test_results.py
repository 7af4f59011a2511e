"""Which result files can be plotted, which of them belong together, and what is on the front."""

import itertools
import json
import re
from pathlib import Path

import pytest

from pumer.app.results import Curve, Point, curves, plot, table
from pumer.reducers import config_to_dict, reduction_from

ROOT = Path(__file__).parents[2]
MADE = {"device": "a machine", "threads": 2}
PUMER = {"method": "pumer", "layers": [2, 5], "prune_ratio": 0.1, "merge_ratio": 0.2}


def spread(value, name="median"):
    return {name: value, "low": value - 0.1, "high": value + 0.1}


def written(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def tuning():
    row = {"reduction": PUMER, "gain": spread(2.0), "accuracy": 0.9, "difference": spread(-0.05, "mean")}
    return {
        "what": "small:vilt",
        "task": "vqav2",
        "cost": "time",
        "unreduced": {"accuracy": 0.95},
        "calibration": {"split": "train", "examples": 512},
        "gauge": {},
        "best": "trial 3",
        "rows": {"trial 3": row, "paper's layers": {**row, "gain": spread(1.5)}},
        "provenance": MADE,
    }


def evaluation(model, reduction, accuracy, **settings):
    plain = config_to_dict(reduction_from(reduction))
    config = {"image_size": None, "reduction": reduction, **settings}
    about = {"model": model, "split": "val", "questions": 100, "reduction": plain, "config": config}
    return about | {"accuracy": spread(accuracy, "mean")}


def benchmark(model, **settings):
    speeds = {"unreduced": None, "mild": 1.4, "limit": 3.0}
    rows = [
        {"name": name, "speed": [{"batch": 8, **({} if gain is None else {"speedup": spread(gain)})}]}
        for name, gain in speeds.items()
    ]
    config = {"model": model, "image_size": None, "reductions": {"mild": PUMER, "limit": {"method": "limit"}}}
    return {"rows": rows, "provenance": MADE | {"config": config | settings}}


def test_a_tuning(tmp_path):
    written(tmp_path, "out/tuning.json", tuning())
    ((name, curve),) = curves(tmp_path).items()
    assert "small:vilt" in name and "tuning.json" in name and "512" in curve.about and "no test" in curve.about
    assert [(point.name, point.gain["median"], point.accuracy["mean"]) for point in curve.points] == [
        ("unreduced", 1.0, 0.95),
        ("trial 3 (chosen)", 2.0, pytest.approx(0.9)),
        ("paper's layers", 1.5, pytest.approx(0.9)),
    ]
    assert curve.points[1].accuracy["low"] == pytest.approx(0.8)


def test_a_benchmark_and_evaluations_of_the_same_model(tmp_path):
    written(tmp_path, "speed.json", benchmark("out/a"))
    written(tmp_path, "original.json", evaluation("out/a", "none", 0.95))
    written(tmp_path, "reduced.json", evaluation("out/a", PUMER, 0.93))
    ((name, curve),) = curves(tmp_path).items()
    assert [(point.name, point.gain["median"], point.accuracy["mean"]) for point in curve.points] == [
        ("unreduced", 1.0, 0.95),
        ("mild", 1.4, 0.93),
    ]
    assert "batch 8" in name and {"speed.json", "original.json", "reduced.json"} <= set(
        name.replace(",", " ").replace("(", " ").replace(")", " ").split()
    )


@pytest.mark.parametrize(
    "change",
    [
        {"model": "out/b"},
        {"reduction": {**PUMER, "merge_ratio": 0.3}},
        {"image_size": 64},
        {"split": "test"},
    ],
)
def test_what_is_of_another_model_is_never_joined(tmp_path, change):
    other = {"model": "out/a", "reduction": PUMER, "accuracy": 0.93} | change
    split = other.pop("split", "val")
    written(tmp_path, "speed.json", benchmark("out/a"))
    written(tmp_path, "original.json", evaluation("out/a", "none", 0.95))
    written(tmp_path, "reduced.json", evaluation(**other) | {"split": split})
    assert curves(tmp_path) == {}


@pytest.mark.parametrize(
    "settings",
    [{"text_length": 8}, {"resize": "pad"}, {"rule": "published"}, {"max_pixels": 9}, {"data": {"root": "other"}}],
)
def test_evaluations_with_other_settings_are_never_joined(tmp_path, settings):
    written(tmp_path, "speed.json", benchmark("out/a"))
    written(tmp_path, "original.json", evaluation("out/a", "none", 0.95))
    written(tmp_path, "reduced.json", evaluation("out/a", PUMER, 0.93, **settings))
    assert curves(tmp_path) == {}
    written(tmp_path, "original.json", evaluation("out/a", "none", 0.95, batch_size=2, **settings))
    (curve,) = curves(tmp_path).values()
    assert [point.accuracy["mean"] for point in curve.points] == [0.95, 0.93]
    name, value = next(iter(settings.items()))
    assert (f"{name}={value}" if name != "data" else "root=other") in curve.about


@pytest.mark.parametrize("blank", ["image", "text"])
def test_answers_without_the_image_or_the_text_are_not_plotted(tmp_path, blank):
    written(tmp_path, "speed.json", benchmark("out/a"))
    for name, reduction in (("original", "none"), ("reduced", PUMER)):
        written(tmp_path, f"{name}-blank.json", evaluation("out/a", reduction, 0.29, blank=blank))
    assert curves(tmp_path) == {}
    for name, reduction, accuracy in (("original", "none", 0.95), ("reduced", PUMER, 0.93)):
        written(tmp_path, f"{name}.json", evaluation("out/a", reduction, accuracy))
    (curve,) = curves(tmp_path).values()
    assert [point.accuracy["mean"] for point in curve.points] == [0.95, 0.93]


MALFORMED = [
    {"mean": 0.9, "high": 1.0},
    {"mean": 0.9, "low": "0.8", "high": 1.0},
    {"mean": 0.9, "low": 0.95, "high": 1.0},
    {"mean": 0.9, "low": 0.8, "high": 10**400},
    {"mean": True, "low": True, "high": True},
    0.9,
    None,
]


@pytest.mark.parametrize("spread_", MALFORMED)
@pytest.mark.parametrize("kind", ["tuning", "demo", "evaluation", "benchmark"])
def test_a_malformed_result_is_left_out_and_named(tmp_path, caplog, kind, spread_):
    gain = {**spread_, "median": spread_["mean"]} if isinstance(spread_, dict) else spread_
    contents = {"good": tuning(), "evaluated": evaluation("out/a", "none", 0.95)}
    contents["tuning"] = tuning() | {"rows": {"trial 3": tuning()["rows"]["trial 3"] | {"gain": gain}}}
    row = {"name": "original", "speed": [{"batch": 1}], "accuracy": spread_}
    contents["demo"] = {"rows": [row], "questions": 1, "title": "x", "provenance": MADE}
    contents["evaluation"] = evaluation("out/a", PUMER, 0.9) | {"accuracy": spread_}
    contents["benchmark"] = benchmark("out/a")
    if kind == "benchmark":
        contents["benchmark"]["rows"][1]["speed"][0]["speedup"] = gain
        contents["evaluation"] = evaluation("out/a", PUMER, 0.9)
    for name in ("good", "evaluated", kind, *(["evaluation"] if kind == "benchmark" else [])):
        written(tmp_path, f"{name}.json", contents[name])
    (curve,) = curves(tmp_path).values()
    assert curve.title == "small:vilt, vqav2" and plot(curve)
    (record,) = caplog.records
    what = "gain" if kind in ("tuning", "benchmark") else "accuracy"
    assert f"{kind}.json: {what} is" in record.getMessage()


def test_files_of_other_kinds_are_passed_over(tmp_path, caplog):
    (tmp_path / "broken.json").write_text('{"rows": [')
    (tmp_path / "binary.json").write_bytes(bytes(range(256)))
    title = {"questions": 1, "title": "x"}
    others = [[], 3, {}, {"rows": 3, **title}, {"rows": [], **title}, {"tables": [{"rows": [{}]}]}]
    for number, content in enumerate([*others, {"config": 3, "reduction": {}}]):
        written(tmp_path, f"{number}.json", content)
    assert curves(tmp_path) == {}
    assert "broken.json" in caplog.text


def test_the_results_of_this_repository():
    found = curves(ROOT / "benchmarks/results")
    figure = next(curve for name, curve in found.items() if "Figure 5" in name)
    assert len(figure.points) > 20 and next(iter(found.values())) == figure
    assert all(point.gain["low"] <= point.gain["median"] <= point.gain["high"] for point in figure.points)
    for curve in found.values():
        drawn, rows = plot(curve), table(curve)
        assert drawn.startswith("<svg") and "currentColor" in drawn
        assert {link for link in re.findall(r"http[^\s\"]*", drawn) if "www.w3.org" not in link} == set()
        assert rows.count("<tr") == len(curve.points) + 1


def test_the_front_is_what_no_other_point_beats(tmp_path):
    values = [0.5, 0.6, 0.7]
    for accuracies in itertools.product(values, repeat=4):
        for gains in ((1, 2, 3, 4), (1, 2, 2, 3), (2, 1, 1, 1)):
            points = tuple(
                Point(str(n), spread(g), spread(a, "mean"))
                for n, (g, a) in enumerate(zip(gains, accuracies, strict=True))
            )
            front = Curve("", "", "", points).front
            key = lambda point: (point.gain["median"], point.accuracy["mean"])  # noqa: E731
            beaten = {
                point.name
                for point in points
                if any(
                    all(x >= y for x, y in zip(key(o), key(point), strict=True)) and key(o) != key(point)
                    for o in points
                )
            }
            assert {key(point) for point in front} == {key(point) for point in points if point.name not in beaten}
