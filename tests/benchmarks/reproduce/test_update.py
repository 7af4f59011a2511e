import pytest

from benchmarks.reproduce.update import measured_pairs, read_results, updated
from pumer.utils.errors import InputError
from pumer.utils.files import write_json

ORDER = {"table1": ["vilt/vqav2", "vilt/coco", "meter/coco"], "table7": ["meter/coco", "vilt/vqav2"]}


def row(where, figure, **other):
    return {"where": where, "tuned": figure and {"figure": figure, "seeds": 1}, **other}


def results(date, **tables):
    made = [{"name": name, "note": date, "rows": rows} for name, rows in tables.items()]
    run = {"of": {table["name"]: measured_pairs(table) for table in made}, "date": date}
    return {"title": date, "scale": "world", "tables": made, "runs": [run]}


def rows_of(found):
    return {
        table["name"]: [(row["where"], row["tuned"] and row["tuned"]["figure"]) for row in table["rows"]]
        for table in found["tables"]
    }


def test_a_new_run_takes_the_place_of_what_it_measured_and_of_nothing_else():
    before = results(
        "May",
        table7=[row("meter/coco", 1), row("vilt/vqav2", 2)],
        table1=[row("vilt/vqav2", 3), row("vilt/coco TR", 4), row("vilt/coco IR", 5), row("meter/coco TR", None)],
    )
    now = results(
        "June",
        table1=[row("meter/coco TR", None), row("vilt/coco TR", 6), row("vilt/coco IR", 7), row("vilt/vqav2", None)],
    )
    found = updated(before, now, ORDER)
    assert rows_of(found) == {
        "table1": [("vilt/vqav2", 3), ("vilt/coco TR", 6), ("vilt/coco IR", 7), ("meter/coco TR", None)],
        "table7": [("meter/coco", 1), ("vilt/vqav2", 2)],
    }
    assert [(run["date"], run["of"]) for run in found["runs"]] == [
        ("June", {"table1": ["vilt/coco"]}),
        ("May", {"table7": ["meter/coco", "vilt/vqav2"], "table1": ["vilt/vqav2"]}),
    ]
    assert [table["note"] for table in found["tables"]] == ["June", "May"]
    assert updated(found, now, ORDER)["tables"] == found["tables"]


@pytest.mark.parametrize(
    "fewer",
    [
        [row("vilt/coco TR", 3), row("vilt/coco IR", None)],
        [row("vilt/coco TR", 3, cost=None), row("vilt/coco IR", 4)],
        [row("vilt/coco TR", None, training=[{}]), row("vilt/coco IR", None)],
    ],
)
def test_what_has_fewer_figures_takes_no_place(fewer, caplog):
    before = results("May", table1=[row("vilt/coco TR", 1, cost={"throughput": 2}), row("vilt/coco IR", 2)])
    found = updated(before, results("June", table1=fewer), ORDER)
    assert rows_of(found) == {"table1": [("vilt/coco TR", 1), ("vilt/coco IR", 2)]}
    assert [run["date"] for run in found["runs"]] == ["May"]
    assert caplog.messages == ["table1 of vilt/coco stays as it was: this run has fewer results"]
    three = results("July", table1=[row("vilt/coco TR", 1, cost={"throughput": 2}), row("vilt/coco IR", 2)])
    three["tables"][0]["rows"][0]["tuned"]["seeds"] = 3
    assert updated(three, before, ORDER)["runs"][0]["date"] == "July"


def test_a_run_of_which_nothing_is_left_is_not_told():
    before, now = (results(date, table1=[row("vilt/vqav2", 2), row("vilt/coco TR", 1)]) for date in ("May", "June"))
    assert updated(before, now, ORDER) == now


@pytest.mark.parametrize("rule", [None, "published", "official"])
def test_rows_of_another_rule_are_not_kept_without_a_word(rule, caplog):
    before = results(
        "May", table1=[row("vilt/vqav2", 1), row("vilt/coco TR", 2)], table7=[row("vilt/vqav2", 0, cost=1)]
    )
    now = results("June", table7=[row("meter/coco", 3)])
    now["runs"][0]["rule"] = "official"
    before["runs"][0] |= {"rule": rule} if rule else {}
    found = updated(before, now, ORDER)
    assert [run["rule"] for run in found["runs"]] == ["official", rule or "published"]
    assert ("table1 of vilt/vqav2 is kept from an earlier run, scored by rule=published" in caplog.text) == (
        rule != "official"
    )
    assert "table7" not in caplog.text and "coco" not in caplog.text


def test_tables_and_tasks_that_are_no_more_are_dropped():
    before = results("May", table9=[row("vilt/vqav2", 1)], table1=[row("vilt/gqa", 2), row("vilt/vqav2", 3)])
    found = updated(before, results("June", table7=[row("vilt/vqav2", 4)]), ORDER)
    assert rows_of(found) == {"table1": [("vilt/vqav2", 3)], "table7": [("vilt/vqav2", 4)]}
    assert found["runs"][1]["of"] == {"table1": ["vilt/vqav2"]}


def test_results_of_something_else_are_refused(tmp_path):
    assert read_results(tmp_path, "world") is None
    write_json(tmp_path / "results.json", results("May"))
    assert read_results(tmp_path, "world")["title"] == "May"
    with pytest.raises(InputError, match="is of scale world, this run of full; give another --results"):
        read_results(tmp_path, "full")
    for other in ([], {"scale": "world", "tables": []}):
        write_json(tmp_path / "results.json", other)
        with pytest.raises(InputError, match="no results"):
            read_results(tmp_path, "world")
