"""Folders in commands are renamed, and nothing else is."""

from pathlib import Path

import pytest

from benchmarks.reproduce.places import without_places


@pytest.mark.parametrize("out", ["out", "r", "/home/me/r", "data", "a"])
def test_folders_are_renamed_in_commands_alone(out):
    content = {
        "title": f"without pruning, taken {out} of {out}/models",
        "rows": [{"command": f"pumer train recipes/a.yaml output={out}/models/x 'l=[\"{out}/y\"]' --data {out}"}],
        "tuned": {"commands": [f"pumer evaluate {out}/models/x"]},
        "provenance": {"config": {"out": out, "only": ["data-a"], "jobs": 2}, "versions": {"a": "1"}},
    }
    found = without_places(content, {Path(out): "OUT"})
    assert found["title"] == content["title"]
    assert found["rows"] == [{"command": "pumer train recipes/a.yaml output=OUT/models/x 'l=[\"OUT/y\"]' --data OUT"}]
    assert found["tuned"] == {"commands": ["pumer evaluate OUT/models/x"]}
    assert found["provenance"] == {"config": {"out": "OUT", "only": ["data-a"], "jobs": 2}, "versions": {"a": "1"}}


def test_the_longer_folder_counts_and_the_current_one_stays():
    content = {"command": "--out r/s --data r/t ."}
    assert without_places(content, {Path("r"): "R", Path("r/s"): "S"}) == {"command": "--out S --data R/t ."}
    assert without_places(content, {Path("."): "HERE"}) == content
