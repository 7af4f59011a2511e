"""Every recipe parses, and opens with the command that runs it."""

from pathlib import Path

import pytest

from pumer.config import load
from pumer.jobs import reduction_from
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
        assert config.data == original.data
        assert config.optimizer == original.optimizer
