"""`pumer list` and `pumer info`: everything that there is, and what a checkpoint is."""

import json

import pytest
from tiny.exported import blank_record
from typer.testing import CliRunner

import pumer
from pumer.backbones import BACKBONES, DECODERS
from pumer.checkpoint import load_processor
from pumer.cli import app
from pumer.reducers import METHODS, PuMerConfig
from pumer.settings.common import PRESETS
from pumer.tasks import TASKS
from pumer.utils.files import write_json
from pumer.utils.shipped import SMALL, recipe_file, recipes

REDUCTION = PuMerConfig(layers=(1,), prune_ratio=0.1)


def shown(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_list_has_every_name_with_a_line():
    found = shown("list")
    presets = [f"preset:{name}" for name in PRESETS]
    models = [*SMALL, *BACKBONES, *DECODERS]
    wanted = {"methods": METHODS, "models": models, "tasks": TASKS, "recipes": recipes(), "presets": presets}
    assert {kind: list(rows) for kind, rows in found.items()} == {kind: list(names) for kind, names in wanted.items()}
    lines = [line for kind in ("methods", "models", "tasks", "recipes") for line in found[kind].values()]
    assert all(len(line.split()) > 2 for line in lines)
    assert all(recipe_file(name).is_file() for name in found["recipes"])


def test_list_shows_one_kind_as_a_table():
    result = CliRunner().invoke(app, ["list", "tasks"])
    assert result.exit_code == 0 and all(task in result.stdout for task in TASKS) and "recipes" not in result.stdout


def test_an_unknown_kind_is_refused_with_those_there_are():
    result = CliRunner().invoke(app, ["list", "recipe"])
    assert result.exit_code == 2 and "'recipes'" in result.stderr and "'recipe'" in result.stderr


def test_info_of_a_saved_model(tiny_vilt, tmp_path):
    model = pumer.patch(pumer.load(tiny_vilt), REDUCTION)
    pumer.save(model, tmp_path / "saved")
    load_processor(tiny_vilt).save_pretrained(tmp_path / "saved")
    found = shown("info", tmp_path / "saved")
    assert found["architecture"] == type(model).__name__
    assert found["parameters"] == sum(weights.numel() for weights in model.parameters())
    assert found["labels"] == len(model.config.id2label)
    assert found["reduction"]["schedule"][0]["prune_ratio"] == 0.1


@pytest.mark.parametrize("name", SMALL)
def test_info_of_what_ships(name):
    assert shown("info", name)["model"] == name


@pytest.mark.parametrize("generative", [False, True])
def test_info_of_an_exported_folder_opens_no_program(generative, tmp_path):
    record = {**blank_record(generative), "format": "onnx"}
    write_json(tmp_path / "config.json", {})
    write_json(tmp_path / "export.json", record)
    found = shown("info", tmp_path)
    assert found["format"] == "onnx" and found.get("labels") == (None if generative else 0)
    write_json(tmp_path / "export.json", record | {"version": 99})
    result = CliRunner().invoke(app, ["info", str(tmp_path)])
    assert result.exit_code == 2 and "version 99" in result.stderr


def test_info_of_nothing():
    result = CliRunner().invoke(app, ["info", "./nothing"])
    assert result.exit_code == 2 and "nothing" in result.stderr
