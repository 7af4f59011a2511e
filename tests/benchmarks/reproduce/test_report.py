import pytest

from benchmarks.reproduce.collect import collect_table
from benchmarks.reproduce.report import content, goals, html, markdown, write
from benchmarks.reproduce.tables import tables

PROVENANCE = {
    "versions": {"torch": "2"},
    "command": "python -m benchmarks reproduce",
    "commit": "c0ffee",
    "device": "d",
}
PROVENANCE["date"] = "2026-01-02T03:04:05+00:00"


def interval(value):
    return {"mean": value, "low": value - 0.01, "high": value + 0.01}


def outcome(difference, seeds=1):
    figures = {"accuracy": interval(0.9), "difference": interval(difference), "agreement": 0.95}
    return {"seeds": seeds, "questions": 5400, **figures}


def row(**changes):
    cost = {"throughput": {"median": 1.8, "low": 1.7, "high": 1.9}, "memory": 0.6}
    cost |= {"memory_inference": 0.98, "macs_fewer": 1.9}
    made = {"where": "vilt/nlvr2", "model": "PuMer", "changed": True, "series": "", "seeds_wanted": 3, "cost": cost}
    paper = {"accuracy": 74.9, "throughput": 1.74, "memory": -45}
    return made | {"paper": paper, "tuned": outcome(-0.005, 3), "untuned": outcome(-0.1)} | changes


def results(*rows, name="table1"):
    table = {"name": name, "title": "A <table>", "note": "A note.", "kind": "cells", "rows": list(rows)}
    run = {"machines": {"Tested on": ["cpu"]}, "commits": {"abcdef0": 3}, "provenance": PROVENANCE}
    return {"title": "Tables", "tables": [table], "runs": [run | {"of": {name: ["vilt/nlvr2"]}}]}


def cells_of(each, name="table1"):
    columns, (line,) = content(results(each, name=name)["tables"][0])
    return dict(zip(columns, line, strict=True))


def test_a_row_tells_ours_and_the_papers():
    assert cells_of(row()) == {
        "task": "vilt/nlvr2",
        "model": "PuMer",
        "seeds": "3",
        "examples": "5,400",
        "accuracy %": "90.0\n[89.0, 91.0]",
        "difference": "-0.5\n[-1.5, +0.5]",
        "agreement %": "95.0",
        "difference, not fine-tuned": "-10.0\n[-11.0, -9.0], seeds: 1",
        "throughput": "1.80x\n[1.70, 1.90]",
        "memory, autograd on": "-40%",
        "memory, inference": "-2%",
        "MACs, times fewer": "1.90x",
        "the paper's accuracy %, throughput, memory": "74.9, 1.74x, -45%",
    }


def test_what_was_not_run_has_no_figure_of_ours():
    shown = cells_of(row(tuned=None, untuned=None, cost=None))
    ours = [shown[name] for name in shown if name not in ("task", "model", "seeds") and "paper" not in name]
    assert set(ours) == {"not run", "–"}
    assert shown["seeds"] == "0 of 3"
    assert shown["the paper's accuracy %, throughput, memory"] == "74.9, 1.74x, -45%"
    assert cells_of(row(paper=None))["the paper's accuracy %, throughput, memory"] == "–"
    assert cells_of(row(tuned=outcome(0, 2)))["seeds"] == "2 of 3"
    spread = outcome(-0.01, 3) | {"by_seed": [-0.012, -0.004, -0.014]}
    assert cells_of(row(tuned=spread))["seeds"] == "3\n(-1.4 to -0.4)"


@pytest.mark.parametrize(("resumed_from", "shown"), [(0, ["1.5", "40.0"]), (100, ["interrupted"] * 2)])
def test_what_was_interrupted_tells_no_time(resumed_from, shown):
    run = {"steps": 188, "resumed_from": resumed_from, "seconds": 90.0, "samples_per_second": 40.0}
    table = {"kind": "training", "rows": [{"where": "a", "model": "b", "training": [run], "faster": None}]}
    assert content(table)[1][0][3:6] == ["188", *shown]


def test_a_whole_plan_that_was_not_run_says_so_in_every_row(plans):
    for table in tables(plans).values():
        collected = collect_table(table, {}, plans)
        for line in content(collected)[1]:
            assert "not run" in line


def test_seeds_of_what_was_not_fine_tuned_are_told_where_they_differ():
    alike = row(untuned=outcome(-0.1, 3))
    assert cells_of(alike)["difference, not fine-tuned"] == "-10.0\n[-11.0, -9.0]"


def test_a_slow_down_is_called_one():
    slower = {"median": 0.9, "low": 0.8, "high": 0.95}
    assert cells_of(row(cost=row()["cost"] | {"throughput": slower}))["throughput"].startswith("0.90x as fast")


@pytest.mark.parametrize(("difference", "missed"), [(-0.0101, True), (-0.01, False), (0.02, False)])
def test_a_drop_of_more_than_one_point_is_told(difference, missed):
    counted, *found = goals(results(row(tuned=outcome(difference)), row()))
    sure = int(difference > 0)
    fine = f"{2 - missed} of 2 rows of reduced models lose one point or less"
    assert counted == f"Table 1: {fine}, {sure} of them with their whole interval."
    assert found == ["Missed: vilt/nlvr2 loses 1.01 points with PuMer, more than one."] * missed
    assert goals(results(row(tuned=outcome(difference)), name="table4")) == []
    assert goals(results(row(tuned=None))) == []


@pytest.mark.parametrize("name", ["throughput", "macs"])
@pytest.mark.parametrize(("low", "missed"), [(0.001, True), (-0.001, False)])
def test_a_baseline_that_is_better_at_equal_speed_is_named(name, low, missed):
    better, what = {"mean": 0.01, "low": low, "high": 0.02, "beyond": False}, {"macs": "MACs"}.get(name, name)
    rows = [
        row(model="tome: 12", series="tome", **{f"at_equal_{name}": better}),
        row(series="cls", **{f"at_equal_{name}": None}),
    ]
    counted, *found = goals(results(*rows, name="figure5"))
    assert counted == f"Figure 5, at equal {what}: {1 - missed} of 1 others are not surely more accurate than PuMer."
    assert found == [f"Missed: at equal {what}, tome: 12 is 1.0 [0.1, 2.0] points more accurate than PuMer."] * missed


def test_the_files(tmp_path):
    made = results(row(series="pumer"), row(series="tome", tuned=outcome(-0.02)), name="table1")
    folder = tmp_path / "new"
    write(made, folder)
    assert sorted(file.name for file in folder.iterdir()) == [
        "report.html",
        "report.md",
        "results.json",
        "table1.png",
        "table1.svg",
    ]
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    assert "- Missed: vilt/nlvr2 loses 2.00 points" in text
    assert "<li>Missed: vilt/nlvr2 loses 2.00 points" in page
    assert "| -0.5 [-1.5, +0.5] |" in text
    assert "![A <table>](table1.svg)" in text
    assert "A &lt;table&gt;" in page
    assert "data:image/svg+xml;base64," in page
    assert 'src="http' not in page


def test_without_a_figure_there_is_none():
    made = results(row(cost=None, series="pumer"))
    assert "![" not in markdown(made)
    assert "<img" not in html(made, {})


def test_how_the_figures_were_made_is_told_of_every_run():
    made = results(row())
    alone = markdown(made)
    assert "`python -m benchmarks reproduce`; 2026-01-02; torch 2; commit c0ffee. Tested on: cpu." in alone
    assert "by commit: abcdef0 (3)." in alone
    assert "Of it are" not in alone
    (run,) = made["runs"]
    other = run | {"of": {"table7": ["meter/vqav2"], "table1": ["vilt/coco", "vilt/vqav2"]}, "commits": {}}
    several = markdown(made | {"runs": [run, other]})
    assert "Of it are table1: vilt/nlvr2. " in several
    assert "Of it are table7: meter/vqav2; table1: vilt/coco, vilt/vqav2. " in several
