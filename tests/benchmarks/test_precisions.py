"""Accuracy by precision, on a tiny model: rows, differences, and what is not run again."""

import json
import shutil
import sys

import pytest

from benchmarks import precisions
from pumer.tasks import TASKS, Example


def test_rows_are_kept_and_not_run_again(tiny_vilt, tiny_vqa, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_vilt, folder)
    (folder / "run.json").write_text(json.dumps({"config": {"task": "vqav2", "data": {"root": str(tiny_vqa)}}}))
    places = ("--work", str(tmp_path / "work"), "--results", str(tmp_path), "--limit", "6")
    monkeypatch.setattr(precisions, "ROWS", {})
    monkeypatch.setattr(sys, "argv", ["precisions", str(folder), *places])
    precisions.main()
    (result,) = json.loads((tmp_path / "precisions-vilt-small-cpu.json").read_text()).values()
    found = result["rows"][precisions.PYTORCH]["accuracy"]
    assert result["questions"] == 6 and result["split"] == "val" and result["words"] == 7
    assert found["agreement"] == 1 and found["difference"] == {"mean": 0, "low": 0, "high": 0}
    monkeypatch.setattr(precisions, "predict", None)
    precisions.main()
    shutil.rmtree(tmp_path / "work")
    precisions.main()
    assert capsys.readouterr().out.count("vqav2-original") == 3


def test_retrieval_is_compared_by_direction():
    task = TASKS["flickr30k"](())
    queries = [Example(f"image {i}", (f"{i}.jpg",), "", (str(i), str(9)), source=str(i)) for i in range(4)]
    queries += [Example(f"caption {i}", (), "text", (str(i),), source=str(i)) for i in range(2)]
    own = ["0 1", "1 9", "3 2", "0 3", "0 1", "0 1"]
    other = ["9 0", "1 0", "2 3", "0 3", "1 0", "0 1"]
    found = precisions.compared(task, queries, other, own)
    assert [found[kind]["mean"] for kind in ("TR", "IR")] == [0.75, 0]
    assert [found[kind]["difference"]["mean"] for kind in ("TR", "IR")] == [0.25, -0.5]
    assert [found[kind]["agreement"] for kind in ("TR", "IR")] == [0.5, pytest.approx(0.5)]
