"""Figure 5 by one search for all methods, on a tiny model: rows, differences, and what is not run again."""

import json
import shutil
import sys

import pytest

from benchmarks import tuned
from pumer.utils.files import read_json, write_json


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
    assert [row["method"] for row in rows] == ["original", "paper", "pumer", "l2norm"]
    assert rows[0]["to_paper"] is rows[0]["to_pumer"] is rows[1]["to_pumer"] is None
    assert rows[3]["to_pumer"]["mean"] == pytest.approx(rows[3]["accuracy"]["mean"] - rows[2]["accuracy"]["mean"])
    for row in rows[1:]:
        assert row["to_paper"]["mean"] == pytest.approx(row["accuracy"]["mean"] - rows[1]["accuracy"]["mean"])
    for row in rows:
        assert row["to_original"]["mean"] == pytest.approx(row["accuracy"]["mean"] - rows[0]["accuracy"]["mean"])
    assert (tmp_path / "tuned-tiny.png").stat().st_size > 1000
    kept = tmp_path / "work" / "tiny" / "tune-pumer-1.2" / "tuning.json"
    found = read_json(kept)
    del found["rows"][tuned.PAPERS_LAYERS]
    write_json(kept, found)
    (tmp_path / "work" / "tiny" / "settings.json").unlink()  # as work that was begun before there was such a file
    monkeypatch.setattr(tuned, "evaluate", None)
    tuned.main()
    assert read_json(tmp_path / "tuned-tiny.json")["rows"] == rows
    monkeypatch.setattr(tuned, "tune", None)
    tuned.main()
    assert read_json(tmp_path / "tuned-tiny.json")["rows"] == rows
    for setting, value in (("--trials", "5"), ("--limit", "3"), ("--split", "train"), ("--seed", "1")):
        monkeypatch.setattr(sys, "argv", ["tuned", *given, setting, value])
        with pytest.raises(SystemExit, match=f"{setting[2:]}=.*{value}"):
            tuned.main()
    monkeypatch.setattr(tuned, "tune", lambda *_: write_json(kept, found))
    write_json(kept, found)
    monkeypatch.setattr(sys, "argv", ["tuned", *given])
    with pytest.raises(SystemExit, match=r"paper.*1\.2"):
        tuned.main()
