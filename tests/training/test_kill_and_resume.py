"""kill -9 at a step or inside a save, a full disk, early stopping: the same command ends with the same weights."""

import dataclasses
import errno
import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

import pumer
from benchmarks.kill_and_resume import CHILD
from pumer.settings.train import OptimizerConfig, TrainConfig, TrainingData
from pumer.training.checkpoints import checkpoints, last_checkpoint
from pumer.training.run import run
from pumer.training.trainer import DistillingTrainer
from pumer.utils.config import to_dict
from pumer.utils.errors import InputError

PUMER = {"method": "pumer", "prune_ratio": 0.1, "merge_ratio": 0.3, "text_merge_ratio": 0.2}


@pytest.fixture
def vilt(tiny_vilt, tiny_vqa, tmp_path):
    """ViLT with dropout, on questions: 5 steps of 5 in an epoch, the last one filled up."""
    shutil.copytree(tiny_vilt, tmp_path / "vilt")
    settings = json.loads((tmp_path / "vilt" / "config.json").read_text())
    settings |= {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    (tmp_path / "vilt" / "config.json").write_text(json.dumps(settings))
    return TrainConfig(
        model=str(tmp_path / "vilt"),
        output=tmp_path / "killed",
        data=TrainingData(root=tiny_vqa, min_answer_count=1),
        reduction=PUMER | {"layers": [2, 5, 8]},
        teacher="self",
        optimizer=OptimizerConfig(lr=1e-3),
        batch_size=5,
        max_steps=23,
        eval_steps=4,
        patience=9,
        log_steps=1,
        report_to=(),
    )


@pytest.fixture
def meter(vilt, tiny_meter, tiny_flickr):
    """METER on captions, which come with others that are drawn."""
    data = TrainingData(root=tiny_flickr, min_answer_count=1)
    reduction = PUMER | {"layers": [0, 2, 4]}
    return dataclasses.replace(vilt, model=str(tiny_meter), task="flickr30k", data=data, reduction=reduction)


def kill(config, method, step):
    """Run the command until it reaches a step of a method, then kill -9."""
    recipe = config.output.parent / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(to_dict(config)))
    command = [sys.executable, "-c", CHILD, method, str(step), "train", str(recipe)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "reached\n"
    child.kill()
    child.communicate()


def train(config, **changes):
    return run(dataclasses.replace(config, **changes), progress=False)


def same(left, right):
    left, right = pumer.load(left).state_dict(), pumer.load(right).state_dict()
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("backbone", ["vilt", pytest.param("meter", marks=pytest.mark.slow)])
def test_killed_run_ends_where_an_undisturbed_one_does(backbone, request, tmp_path):
    config = request.getfixturevalue(backbone)
    undisturbed = train(config, output=tmp_path / "undisturbed")
    kill(config, "training_step", 6)
    assert last_checkpoint(config.output).name == "checkpoint-4"
    kill(config, "_save_rng_state", 16)  # weights and optimizer are written, the rest is not
    assert last_checkpoint(config.output).name == "checkpoint-12"
    assert (config.output / ".saving" / "checkpoint-16" / "model.safetensors").exists()
    for folder in checkpoints(config.output):
        pumer.load(folder)
    finished = train(config)
    assert same(config.output, tmp_path / "undisturbed")
    assert not (config.output / ".saving").exists()
    assert finished["accuracy"] == undisturbed["accuracy"]
    curves = [[entry["loss"] for entry in result["history"] if "loss" in entry] for result in (undisturbed, finished)]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 23


def interrupt(monkeypatch, method, step):
    """Let the trainer fail once, when it calls a method at a step."""
    original = getattr(DistillingTrainer, method)

    def failing(self, *args, **kwargs):
        if self.state.global_step == step:
            monkeypatch.setattr(DistillingTrainer, method, original)
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DistillingTrainer, method, failing)


@pytest.fixture
def stopping(vilt):
    """Nothing ever gets better: stops at step 8, after the first evaluation and three more."""
    return dataclasses.replace(
        vilt, optimizer=OptimizerConfig(lr=1e-12, end_lr=0.0), eval_steps=2, patience=3, max_steps=20
    )


@pytest.mark.parametrize(
    ("method", "step"),
    [("training_step", 5), pytest.param("_save_rng_state", 6, marks=pytest.mark.slow), ("final_scores", 8)],
)
def test_early_stopping_counts_on_after_an_interruption(stopping, tmp_path, monkeypatch, method, step):
    undisturbed = train(stopping, output=tmp_path / "undisturbed")
    assert undisturbed["steps"] == 8
    interrupt(monkeypatch, method, step)
    with pytest.raises(KeyboardInterrupt):
        train(stopping)
    again = train(stopping)
    assert again["steps"] == 8
    assert again["accuracy"] == undisturbed["accuracy"]
    assert same(stopping.output, tmp_path / "undisturbed")
    assert same(stopping.output, stopping.output / "checkpoint-2")  # the first of equals is the best


def test_best_checkpoint_is_found_where_the_run_was_moved_to(stopping, tmp_path, monkeypatch):
    interrupt(monkeypatch, "training_step", 5)
    with pytest.raises(KeyboardInterrupt):
        train(stopping)
    moved = stopping.output.rename(tmp_path / "moved")
    record = json.loads((moved / "run.json").read_text())
    record["config"]["output"] = str(moved)
    (moved / "run.json").write_text(json.dumps(record))
    train(stopping, output=moved)
    assert same(moved, moved / "checkpoint-2")


def test_finished_run_takes_no_further_step(vilt, monkeypatch):
    train(vilt)
    monkeypatch.setattr(DistillingTrainer, "training_step", None)
    assert train(vilt)["steps"] == 23  # in the middle of an epoch


@pytest.mark.slow
def test_full_disk_leaves_the_last_checkpoint(vilt, tmp_path, monkeypatch):
    """To the same weights as without it; the quick tests of a full disk are in test_stopping.py."""
    train(vilt, output=tmp_path / "undisturbed")
    save = torch.save

    def full(content, path, *args, **kwargs):
        if "checkpoint-12" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="checkpoint-8"):
        train(vilt)
    assert last_checkpoint(vilt.output).name == "checkpoint-8"
    assert not (vilt.output / ".saving").exists()
    monkeypatch.setattr(torch, "save", save)
    train(vilt)
    assert same(vilt.output, tmp_path / "undisturbed")


def test_newest_and_best_checkpoints_stay(stopping):
    train(stopping, keep=2)
    assert [folder.name for folder in checkpoints(stopping.output)] == ["checkpoint-2", "checkpoint-6", "checkpoint-8"]
