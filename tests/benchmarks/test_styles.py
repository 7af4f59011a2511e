"""The presets' schedules on a model: rows and differences."""

import json
import shutil
import sys

import pytest

from benchmarks import styles
from pumer.utils.files import read_json
from pumer.utils.shipped import SMALL


@pytest.mark.slow
def test_both_schedules_stand_beside_the_original(tiny_vqa, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(SMALL["small:vilt"], folder)
    (folder / "run.json").write_text(json.dumps({"config": {"task": "vqav2", "data": {"root": str(tiny_vqa)}}}))
    given = [str(folder), "--name", "tiny", "--limit", "4"]
    monkeypatch.setattr(sys, "argv", ["styles", *given, "--work", str(tmp_path / "work"), "--results", str(tmp_path)])
    styles.main()
    row = read_json(tmp_path / "styles-tiny.json")["rows"]["vqav2"]
    assert row["questions"] == 4 and row["original"]["to_original"]["mean"] == 0
    assert row["paper"]["fewer_macs"] == pytest.approx(row["gradual"]["fewer_macs"], rel=0.03)
    gained = row["gradual"]["accuracy"]["mean"] - row["paper"]["accuracy"]["mean"]
    assert row["gradual_to_paper"]["mean"] == pytest.approx(gained)
