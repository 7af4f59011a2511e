import base64
import io
import re

import pytest
from PIL import Image
from rich.console import Console

from pumer.demo import report


def printed(results, width):
    console = Console(width=width, file=io.StringIO())
    console.print(report.tables(results))
    return console.file.getvalue()


def interval(value, width):
    return {"mean": value, "low": value - width, "high": value + width}


@pytest.fixture
def results():
    original = {
        "name": "original",
        "note": "fine-tuned & unreduced",
        "accuracy": interval(0.912, 0.008),
        "by_type": {"what <b>color</b>": {"mean": 0.95, "questions": 1200}},
        "speed": [{"batch": 1, "images_per_second": 41.4}, {"batch": 64, "images_per_second": 212.0}],
        "memory": 312 * 2**20,
        "macs": 830_000_000,
    }
    reduced = {
        "name": "reduced",
        "accuracy": interval(0.905, 0.007),
        "difference": interval(-0.007, 0.005),
        "agreement": 0.953,
        "splits": {"unseen pairs": interval(0.777, 0.02)},
        "by_type": {"what <b>color</b>": {"mean": 0.5, "questions": 1200}},
        "speed": [
            {"batch": 1, "images_per_second": 37.1, "speedup": {"median": 0.92, "low": 0.90, "high": 0.95}},
            {"batch": 64, "images_per_second": 372.0, "speedup": {"median": 1.74, "low": 1.70, "high": 1.77}},
        ],
        "memory": 250 * 2**20,
        "macs": 450_000_000,
        "ideal_speedup": 1.844,
    }
    constant = {"name": "best constant", "accuracy": interval(0.4, 0.01)}
    return {
        "title": "A comparison",
        "summary": "One line.",
        "questions": 5000,
        "rows": [original, reduced, constant],
        "tokens": {"original": [(0, 9, 145), (1, 9, 145)], "reduced": [(0, 9, 145), (1, 7, 88)]},
        "examples": [
            {
                "path": "one.png",
                "question": "is 1 < 2?",
                "truth": "yes",
                "answers": {"original": "yes", "reduced": "no"},
            }
        ],
        "provenance": {"command": "pumer demo"},
    }


MEASURED = [
    *("91.2 %", "[90.4, 92.0]", "90.5 %", "[89.8, 91.2]", "-0.7", "[-1.2, -0.2]", "95.3 %", "77.7 %", "[75.7, 79.7]"),
    *("41", "212", "37 (0.92x as fast)", "[0.90, 0.95]", "372 (1.74x)", "[1.70, 1.77]"),
    *("312 MiB", "250 MiB", "0.830 G", "0.450 G", "ideal 1.84x", "40.0 %", "[39.0, 41.0]"),
]


def test_every_measured_figure_is_in_the_page_and_in_the_terminal(results, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    report.write(results, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    terminal = printed(results, width=200)
    for figure in MEASURED:
        assert f">{figure}<" in page
        assert figure in terminal


def test_what_was_not_measured_is_a_dash_and_never_a_number(results):
    columns = report.headline(results)
    constant = {name: cells[2] for name, cells in columns.items()}
    assert constant.pop("model") == "best constant"
    assert constant.pop("accuracy") == "40.0 %\n[39.0, 41.0]"
    assert set(constant.values()) == {report.UNMEASURED}
    assert columns["difference"][0] == report.UNMEASURED


def test_a_column_nobody_measured_is_left_out(results):
    for row in results["rows"]:
        row.pop("memory", None)
        row.pop("speed", None)
    assert list(report.headline(results)) == ["model", "accuracy", "difference", "agreement", "unseen pairs", "MACs"]


def test_tables_fit_eighty_columns_without_cutting_a_figure(results):
    lines = printed(results, width=80).splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    assert any("[90.4, 92.0]" in line for line in lines)


def test_page_is_self_contained_and_escaped(results, tmp_path):
    picture = Image.new("RGB", (5, 3), (200, 30, 30))
    picture.save(tmp_path / "one.png")
    report.write(results, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    (embedded,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(embedded) == (tmp_path / "one.png").read_bytes()
    assert "is 1 &lt; 2?" in page
    assert "what &lt;b&gt;color&lt;/b&gt;" in page
    assert "fine-tuned &amp; unreduced" in page
    assert '<li class="right">original: <b>yes</b>' in page
    assert '<li class="wrong">reduced: <b>no</b>' in page


def test_words_are_explained_before_the_first_table_and_axes_are_named(results, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    report.write(results, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    before = page[: page.index("<table>")]
    assert all(f"<dt>{word}</dt>" in before for word in ("token", "prune", "merge", "agreement"))
    assert ">tokens after the layer</text>" in page and ">layer</text>" in page


def test_it_opens_with_a_right_answer_and_shows_one_that_is_lost(results, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    (lost,) = results["examples"]
    right, both = (
        {**lost, "question": name, "answers": dict.fromkeys(lost["answers"], name)} for name in ("yes", "no")
    )
    results["examples"] = [both, lost, right]
    report.write(results, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    questions = re.findall("<h3>(.*)</h3>", page)
    assert questions == ["yes", "is 1 &lt; 2?", "no"]
    assert page.index("<h3>yes") < page.index("<table>") < page.index("gets wrong</h2>") < page.index("is 1 &lt;")


def test_token_bars_are_to_one_scale(results, tmp_path):
    results["examples"] = []
    report.write(results, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    bars = re.findall(r'<rect class="(image|text)" x="\d+" y="[\d.]+" width="\d+" height="([\d.]+)"/>', page)
    heights = {kind: [float(height) for drawn, height in bars if drawn == kind] for kind in ("image", "text")}
    assert heights["image"] == pytest.approx([130 * n / 154 for n in (145, 145, 145, 88)], abs=0.06)
    assert heights["text"] == pytest.approx([130 * n / 154 for n in (9, 9, 9, 7)], abs=0.06)
