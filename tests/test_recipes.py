"""Every recipe parses, and opens with the command that runs it."""

from dataclasses import replace
from pathlib import Path

import pytest

from pumer.config import load
from pumer.jobs import reduction_from
from pumer.tasks import TASKS
from pumer.train import TrainConfig

ROOT = Path(__file__).parent.parent
RECIPES = sorted(path.relative_to(ROOT) for path in ROOT.glob("recipes/**/*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_recipe(path):
    lines = (ROOT / path).read_text().splitlines()
    command = lines[0].removeprefix("# ").split()
    assert command[:3] == ["pumer", "train", str(path)]
    head = "\n".join(line for line in lines[:12] if line.startswith("#"))
    assert "Must exist:" in head
    assert "Expected:" in head
    config = load(TrainConfig, ROOT / path, command[3:])
    reduced = reduction_from(config.reduction)
    assert (config.teacher is not None) == (reduced.method == "pumer") == ("-pumer" in path.stem)
    if config.teacher is not None:
        original = load(TrainConfig, ROOT / path.with_stem(path.stem.split("-pumer")[0] + "-original"), command[3:])
        assert Path(config.teacher) == original.output
        assert replace(config.data, limit=None) == replace(original.data, limit=None)
        assert config.data.limit is None or config.data.limit <= original.data.limit
        assert config.optimizer == original.optimizer


@pytest.mark.parametrize("backbone", ["vilt", "meter"])
@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_world_has_a_recipe_of_every_task_that_runs_from_the_root(backbone, task):
    paths = [ROOT / "recipes" / backbone / f"world-{task}-{kind}.yaml" for kind in ("original", "pumer")]
    original, reduced = (load(TrainConfig, path) for path in paths)
    assert original.task == reduced.task == task
    assert original.data.root == Path("out/world") / task
    assert (ROOT / original.model / "config.json").is_file()
    assert reduced.model == str(original.output)
