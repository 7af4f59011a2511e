"""The parts of a gradual schedule, on a tiny model: the variants, their MACs and their rows."""

import json
import shutil
import sys

import pytest

from benchmarks import parts
from pumer.reducers import PuMerConfig
from pumer.tasks.session import Session
from pumer.utils.files import read_json

pytestmark = pytest.mark.slow  # each schedule is planned many times


@pytest.fixture
def folder(tiny_vilt, tiny_vqa, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_vilt, folder)
    (folder / "run.json").write_text(json.dumps({"config": {"task": "vqav2", "data": {"root": str(tiny_vqa)}}}))
    return folder


def test_each_variant_changes_one_part_and_is_as_cheap(folder):
    found = parts.variants(Session.open(folder), 1.2)
    assert list(found) == [*parts.CHANGES, parts.TOME]
    whole, unpruned, everywhere, words = (found[name].schedule for name in parts.CHANGES)
    assert not any(step.prune_ratio for step in unpruned) and any(step.prune_ratio for step in whole)
    assert whole[0].prune_ratio == 0 and all(step.prune_ratio for step in everywhere)
    assert all(step.text_merge_ratio == 0 for step in whole) and all(step.text_merge_ratio > 0 for step in words)
    assert not isinstance(found[parts.TOME], PuMerConfig)


def test_rows_of_all_variants_and_what_is_there_is_kept(folder, tmp_path, monkeypatch, capsys):
    given = [str(folder), "--speeds", "1.2", "--work", str(tmp_path / "work"), "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["parts", *given])
    parts.main()
    rows = read_json(tmp_path / "parts.json")["rows"]
    assert [row["variant"] for row in rows] == [*parts.CHANGES, parts.TOME]
    for row in rows:
        assert row["to_whole"]["mean"] == pytest.approx(row["accuracy"]["mean"] - rows[0]["accuracy"]["mean"])
    monkeypatch.setattr(parts, "evaluate", None)
    parts.main()
    assert read_json(tmp_path / "parts.json")["rows"] == rows
    monkeypatch.setattr(sys, "argv", ["parts", *given, "--limit", "3"])
    with pytest.raises(SystemExit, match=r"limit=None.*3"):
        parts.main()
