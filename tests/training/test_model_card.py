"""The model card, and a local folder that stands in for the hub."""

import dataclasses
import json
import shutil
from fnmatch import fnmatch
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError

import pumer
from pumer.evaluation.evaluate import run as evaluate
from pumer.settings.evaluate import EvaluateConfig
from pumer.training.run import run
from pumer.utils.errors import InputError
from pumer.utils.files import read_json, write_json


class Hub:
    """What the hub does with our two requests: makes folders, and copies what is not ignored into them."""

    def __init__(self, root):
        self.root = root

    def create_repo(self, api, name, private=None, exist_ok=False):
        repository = self.root / "me" / name.removeprefix("me/")
        repository.mkdir(parents=True, exist_ok=exist_ok)
        return SimpleNamespace(repo_id=f"me/{repository.name}")

    def upload_folder(self, api, *, repo_id, folder_path, ignore_patterns, commit_message):
        for path in folder_path.rglob("*"):
            name = path.relative_to(folder_path).as_posix()
            if path.is_file() and not any(fnmatch(name, pattern) for pattern in ignore_patterns):
                target = self.root / repo_id / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    stand_in = Hub(tmp_path / "hub")
    for name in ("create_repo", "upload_folder"):
        call = getattr(stand_in, name)
        monkeypatch.setattr(HfApi, name, lambda api, *args, call=call, **kwargs: call(api, *args, **kwargs))
    return stand_in.root


@pytest.fixture
def config(training):
    return dataclasses.replace(training, max_steps=2, teacher="self", teacher_cache=True)


def table_rows(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_what_is_pushed_loads_and_says_what_was_measured(config, hub):
    result = run(dataclasses.replace(config, push_to_hub=True, hub_model_id="me/fast"), progress=False)
    there = hub / "me" / "fast"
    assert {"model.safetensors", "reduction.json", "run.json", "README.md", "tokenizer.json"} <= {
        path.name for path in there.iterdir()
    }
    assert not [path for path in there.iterdir() if path.is_dir()]  # no checkpoint, no teacher's answers
    assert [step.layer for step in pumer.reduction(pumer.load(there)).schedule] == [2, 5, 8]
    card = ModelCard.load(there / "README.md")
    assert card.data.library_name == "pumer"
    assert "vqav2" in card.data.tags
    rows = table_rows(card.text)
    score = result["accuracy"]
    figure = f"{100 * score['mean']:.1f} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
    assert ["val", figure, "12", "this training"] in rows
    for expected in (result["command"], result["data_fingerprint"], "distilled from `self`", "prune_ratio: 0.1"):
        assert expected in card.text
    assert result["versions"]["torch"] in card.text
    assert (there / "README.md").read_text().endswith("```\n")


def test_later_measurements_enter_the_card_when_the_command_runs_again(config, hub):
    run(config, progress=False)
    assert not hub.exists()
    measured = evaluate(EvaluateConfig(model=str(config.output), output=config.output / "evaluation.json"))
    speed = [{"batch": 1, "images_per_second": 2.0, "speedup": {"median": 1.5, "low": 1.0, "high": 2.0}}]
    row = {"name": "reduced", "speed": speed, "macs": 2.5e9, "ideal_speedup": 2.0, "memory": 3 * 2**20}
    where = {"device": "a machine", "dtype": "float32", "date": measured["date"]}
    write_json(config.output / "benchmark.json", {"what": "it", "rows": [row], "provenance": where})
    again = dataclasses.replace(config, push_to_hub=True)
    run(again, progress=False)
    rows = table_rows((hub / "me" / "out" / "README.md").read_text())
    score = measured["accuracy"]
    figure = f"{100 * score['mean']:.1f} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
    assert ["val", figure, str(measured["questions"]), "evaluation.json"] in rows
    assert ["reduced", "2.50 G", "1.50x at batch 1", "3 MiB"] in rows
    assert read_json(hub / "me" / "out" / "run.json")["steps"] == 2


def test_what_was_measured_of_an_earlier_model_does_not_enter_the_card(config):
    run(config, progress=False)
    evaluate(EvaluateConfig(model=str(config.output), output=config.output / "evaluation.json"))
    result = json.loads((config.output / "evaluation.json").read_text())
    write_json(config.output / "evaluation.json", result | {"date": "2020-01-01T00:00:00+00:00"})
    run(config, progress=False)
    assert "evaluation.json" not in (config.output / "README.md").read_text()


def test_without_a_login_nothing_is_trained(config, monkeypatch):
    def refused(*args, **kwargs):
        raise LocalTokenNotFoundError("Token is required")

    monkeypatch.setattr(HfApi, "create_repo", refused)
    with pytest.raises(InputError, match=r"out cannot be made on the hub \(Token is required\); log in with"):
        run(dataclasses.replace(config, push_to_hub=True), progress=False)
    assert not (config.output / "run.json").exists()


def test_a_failed_upload_leaves_the_model(config, hub, monkeypatch):
    def broken(*args, **kwargs):
        raise ConnectionError("no route")

    with monkeypatch.context() as patch:
        patch.setattr(HfApi, "upload_folder", broken)
        with pytest.raises(InputError, match=r"is trained but could not be uploaded to me/out \(no route\)"):
            run(dataclasses.replace(config, push_to_hub=True), progress=False)
    assert json.loads((config.output / "run.json").read_text())["steps"] == 2
