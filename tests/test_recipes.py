"""Every recipe parses, and opens with the command that runs it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pumer import NoReduction, PuMerConfig, patch, reduction
from pumer.profiling.named_models import skeleton
from pumer.reducers import reduction_from
from pumer.settings.evaluate import EvaluateConfig
from pumer.settings.train import TrainConfig
from pumer.tasks import TASKS
from pumer.utils.config import load, to_dict
from pumer.utils.errors import InputError
from pumer.utils.shipped import PACKAGE, SMALL, located, name_of, recipe_file

ROOT = PACKAGE / "recipes"
RECIPES = sorted(path.relative_to(ROOT) for path in ROOT.glob("**/*.yaml"))
PRESETS = {"vilt": "vilt-b32", "meter": "meter-b16"}
FULL_SIZE = [
    Path(backbone, f"{task}-{kind}.yaml") for backbone in PRESETS for task in TASKS for kind in ("original", "pumer")
]
"""The paper's runs, one pair for every task."""


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_recipe(path):
    lines = (ROOT / path).read_text().splitlines()
    command = lines[0].removeprefix("# ").split()
    assert command[:3] == ["pumer", "train", path.with_suffix("").as_posix()]
    assert recipe_file(command[2]) == ROOT / path
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
        assert (config.data.limit or math.inf) <= (original.data.limit or math.inf)


@pytest.mark.parametrize("path", FULL_SIZE, ids=str)
def test_full_size_recipe(path):
    config = load(TrainConfig, ROOT / path, ["data.root=data"])
    backbone, (task, kind) = path.parent.name, path.stem.split("-")
    assert config.task == task
    assert config.output == Path("out", backbone, path.stem)
    assert (ROOT / path).read_text().splitlines()[0].split()[-1] == f"data.root=/data/{task}"
    model = f"preset:{PRESETS[backbone]}" + ("-nlvr2" if task == "nlvr2" else "")
    with torch.device("meta"):
        patched = patch(skeleton(model), reduction_from(config.reduction))
    assert reduction(patched) == (PuMerConfig.preset(backbone, task) if kind == "pumer" else NoReduction())


@pytest.mark.parametrize("path", [path for path in FULL_SIZE if path.stem.endswith("-pumer")], ids=str)
def test_a_pair_differs_only_where_it_must(path):
    reduced, original = (
        to_dict(load(TrainConfig, ROOT / folder, ["data.root=data"]))
        for folder in (path, path.with_stem(path.stem.replace("-pumer", "-original")))
    )
    different = {name for name in original if original[name] != reduced[name]}
    assert different == {"output", "reduction", "teacher", "epochs", "patience"}
    assert reduced["teacher"] == original["output"]


@pytest.mark.parametrize("path", [path for path in FULL_SIZE if path.stem.endswith("-original")], ids=str)
def test_every_value_has_its_source(path):
    lines = (ROOT / path).read_text().splitlines()
    settings = lines[lines.index("optimizer:") + 1 :]
    without = [line for line in settings if "  # " not in line]
    assert without == ["workers: 8"]


@pytest.mark.parametrize("backbone", ["vilt", "meter"])
@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_world_has_a_recipe_of_every_task_that_runs_from_anywhere(backbone, task):
    paths = [ROOT / backbone / f"world-{task}-{kind}.yaml" for kind in ("original", "pumer")]
    original, reduced = (load(TrainConfig, path) for path in paths)
    assert original.task == reduced.task == task
    assert original.data.root == Path("out/world") / task
    assert original.model == str(SMALL[f"small:{backbone}"])
    assert reduced.teacher == str(original.output)
    assert reduced.model in (original.model, reduced.teacher), "pre-trained, as in the paper, or fine-tuned"


def test_recipes_and_models_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("epochs: 3\n")
    assert recipe_file("my.yaml") == Path("my.yaml")
    assert recipe_file("vilt/vqav2-pumer") == ROOT / "vilt/vqav2-pumer.yaml"
    with pytest.raises(
        InputError, match=r"'vilt/vqa2-pumer' is unknown; did you mean 'vilt/vqav2-pumer'.*pumer list recipes"
    ):
        recipe_file("vilt/vqa2-pumer")
    with pytest.raises(InputError, match=r"'epochs=3' is a setting.*vilt/vqav2-pumer"):
        recipe_file("epochs=3")
    assert (Path(located("small:meter")) / "config.json").is_file()
    assert located("a/b") == "a/b"
    with pytest.raises(InputError, match=r"'small:vit' is unknown; did you mean 'small:vilt'.*small:meter"):
        located("small:vit")


@pytest.mark.parametrize("name", ["small:vilt", "small:meter", "dandelin/vilt-b32-finetuned-vqa", "/elsewhere/model"])
def test_a_record_names_a_shipped_model_and_not_its_folder(name):
    config = EvaluateConfig(model=name)
    assert to_dict(config)["model"] == name_of(config.model) == name
