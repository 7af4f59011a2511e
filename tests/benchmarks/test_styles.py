"""The presets' schedules on a model: rows and differences."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from benchmarks import styles
from pumer.utils.files import read_json, write_json
from pumer.utils.shipped import SMALL


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the script on folders; its rows."""

    def run(*given):
        places = ("--name", "tiny", "--work", str(tmp_path / "work"), "--results", str(tmp_path))
        monkeypatch.setattr(sys, "argv", ["styles", *map(str, given), *places])
        styles.main()
        return read_json(tmp_path / "styles-tiny.json")["rows"]

    return run


def model(folder, task, root):
    shutil.copytree(SMALL["small:vilt"], folder)
    (folder / "run.json").write_text(json.dumps({"config": {"task": task, "data": {"root": str(root)}}}))
    return folder


@pytest.mark.slow
def test_both_schedules_stand_beside_the_original(tiny_vqa, tmp_path, run):
    row = run(model(tmp_path / "model", "vqav2", tiny_vqa), "--limit", "4")["vqav2"]
    found = row["metrics"]["accuracy"]
    assert found["questions"] == 4 and found["original"]["to_original"]["mean"] == 0
    assert row["paper"]["fewer_macs"] == pytest.approx(row["gradual"]["fewer_macs"], rel=0.03)
    gained = found["gradual"]["accuracy"]["mean"] - found["paper"]["accuracy"]["mean"]
    assert found["gradual_to_paper"]["mean"] == pytest.approx(gained)


def answering(config):
    """In place of `pumer evaluate`: as many questions as the limit, or images, scored by the folder, and captions."""
    ids = range(config.limit or 6)
    if config.galleries is not None:
        ids = [*(f"image {number}" for number in range(2)), *(f"caption {number}" for number in range(4))]
    score = {"a": 0.25, "b": 0.75}.get(Path(config.model).parent.name, 1.0)
    examples = [{"id": each, "source": str(each), "score": score * str(each).startswith("image")} for each in ids]
    write_json(config.per_example, {"examples": examples})


def test_answers_are_kept_by_all_that_they_depend_on(tiny_vqa, tmp_path, run, monkeypatch):
    asked = []
    monkeypatch.setattr(styles, "evaluate", lambda config: asked.append(config) or answering(config))
    first = model(tmp_path / "a" / "original", "vqav2", tiny_vqa)
    rows = run(first)
    assert run(first) == rows and len(asked) == 3
    limited = run(first, "--limit", "5")["vqav2"]
    assert len(asked) == 6 and limited["metrics"]["accuracy"]["questions"] == 5
    assert limited["provenance"]["config"]["limit"] == 5
    other = model(tmp_path / "b" / "original", "vqav2", tmp_path)
    assert run(other)["vqav2"]["settings"] != rows["vqav2"]["settings"] and len(asked) == 9
    assert run(first)["vqav2"]["metrics"] == rows["vqav2"]["metrics"] and len(asked) == 9  # from its own answers


def test_retrieval_has_a_recall_of_texts_and_one_of_images(tiny_vqa, tmp_path, run, monkeypatch):
    monkeypatch.setattr(styles, "evaluate", answering)
    ranking = model(tmp_path / "a" / "coco", "coco", tiny_vqa)
    before = run(model(tmp_path / "b" / "vqav2", "vqav2", tiny_vqa))
    rows = run(ranking)
    assert rows["vqav2"] == before["vqav2"]  # with the provenance of its own run
    metrics = rows["coco"]["metrics"]
    assert {name: each["questions"] for name, each in metrics.items()} == {"TR": 2, "IR": 4}
    assert [metrics[name]["paper"]["accuracy"]["mean"] for name in ("TR", "IR")] == [0.25, 0]
