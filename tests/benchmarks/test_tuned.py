"""Figure 5 by one search for all methods, on a tiny model: rows, differences, and what is not run again."""

import json
import shutil
import sys

import pytest

from benchmarks import tuned
from pumer.utils.files import read_json


@pytest.mark.slow
def test_a_row_for_each_method_and_what_is_there_is_kept(tiny_vilt, tiny_vqa, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_vilt, folder)
    (folder / "run.json").write_text(json.dumps({"config": {"task": "vqav2", "data": {"root": str(tiny_vqa)}}}))
    given = [str(folder), "--name", "tiny", "--methods", "pumer", "l2norm", "--speeds", "1.2", "--examples", "6"]
    given += ["--trials", "4", "--work", str(tmp_path / "work"), "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["tuned", *given])
    tuned.main()
    rows = read_json(tmp_path / "tuned-tiny.json")["rows"]
    methods = [row["method"] for row in rows]
    assert methods[0] == "original" and methods[-2:] == ["pumer", "l2norm"]
    for row in rows:
        assert row["to_original"]["mean"] == pytest.approx(row["accuracy"]["mean"] - rows[0]["accuracy"]["mean"])
    assert (tmp_path / "tuned-tiny.png").stat().st_size > 1000
    monkeypatch.setattr(tuned, "tune", None)
    monkeypatch.setattr(tuned, "evaluate", None)
    tuned.main()
    assert read_json(tmp_path / "tuned-tiny.json")["rows"] == rows
