"""Going on from a checkpoint: one that is not whole is refused by the name of its file, never skipped in silence."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations import TensorBoardCallback

import pumer
from pumer.training.checkpoints import check_complete, check_weights, checkpoints, last_checkpoint
from pumer.training.run import run
from pumer.training.trainer import DistillingTrainer
from pumer.utils.config import to_dict
from pumer.utils.errors import InputError

WEIGHTS, STATE = "model.safetensors", "trainer_state.json"
READ = (STATE, WEIGHTS, "optimizer.pt", "scheduler.pt", "rng_state.pth")
TRAINING_STEP = DistillingTrainer.training_step


def train(config, **changes):
    return run(dataclasses.replace(config, **changes), progress=False)


def stopped(self, *args, **kwargs):
    if self.state.global_step == 5:
        raise KeyboardInterrupt
    return TRAINING_STEP(self, *args, **kwargs)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The output of a run of eight steps that was stopped in the sixth; made by the first test that uses it."""
    return tmp_path_factory.mktemp("interrupted") / "out"


@pytest.fixture
def config(training, interrupted, monkeypatch):
    """Eight steps, a checkpoint after every second, stopped in the sixth; the newest two are kept."""
    data = dataclasses.replace(training.data, eval=None)
    config = dataclasses.replace(training, eval_steps=2, max_steps=8, keep=2, data=data)
    if not interrupted.exists():
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(DistillingTrainer, "training_step", stopped)
            train(config, output=interrupted)
    shutil.copytree(interrupted, config.output)
    record = json.loads((interrupted / "run.json").read_text())
    (config.output / "run.json").write_text(json.dumps(record | {"config": to_dict(config)}))
    assert [folder.name for folder in checkpoints(config.output)] == ["checkpoint-2", "checkpoint-4"]
    return config


def refused(config, *words):
    """Training does not go on, and says why in one line; nothing is lost."""
    with pytest.raises(InputError) as caught:
        train(config)
    said = str(caught.value)
    assert all(word in said for word in (*words, "resume=false")), said
    assert "\n" not in said and "weights_only" not in said
    assert [folder.name for folder in checkpoints(config.output)] == ["checkpoint-2", "checkpoint-4"]


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


def dangle(file):
    file.unlink()
    os.symlink("gone", file)


class Code:
    """What a pickle must not run."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "run"),)


def tamper(file):
    torch.save({"state": Code(file.parent)}, file)


def test_what_cannot_be_read_is_refused_by_name(config):
    newest = config.output / "checkpoint-4"
    for name in READ:
        kept = (newest / name).read_bytes()
        for spoil in (cut, empty, dangle, os.remove, tamper):
            spoil(newest / name)
            with pytest.raises(InputError) as caught:
                check_complete(newest)
            said = str(caught.value)
            assert all(word in said for word in (str(newest / name), "checkpoint-2", "resume=false")), said
            assert "\n" not in said and "weights_only" not in said
            assert not (newest / "run").exists()
            (newest / name).unlink(missing_ok=True)
            (newest / name).write_bytes(kept)
    cut(newest / "optimizer.pt")
    refused(config, str(newest / "optimizer.pt"), "checkpoint-2")
    shutil.rmtree(newest)
    assert train(config)["resumed_from"] == 2


def test_the_only_checkpoint_is_no_reason_to_begin_anew(config):
    shutil.rmtree(config.output / "checkpoint-2")
    cut(config.output / "checkpoint-4" / STATE)
    with pytest.raises(InputError, match=r"trainer_state\.json.*resume=false"):
        train(config)
    assert train(config, resume=False)["steps"] == 8


def other_weights(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


@pytest.fixture
def spoiled(config):
    """The newest checkpoint, whole again for each of many ways to spoil it."""
    newest, kept = config.output / "checkpoint-4", config.output / "kept"
    shutil.copytree(newest, kept)

    def each(ways):
        for words, spoil in ways.items():
            spoil(newest)
            yield newest, words
            shutil.rmtree(newest)
            shutil.copytree(kept, newest)

    return each


def test_weights_of_another_model_are_refused(config, spoiled):
    model = pumer.load(config.output / "checkpoint-2")
    ways = {
        "classifier.3.weight": lambda folder: other_weights(folder, lambda x: x.pop("classifier.3.weight")),
        "extra": lambda folder: other_weights(folder, lambda x: x.update(extra=torch.ones(1))),
        "shape": lambda folder: other_weights(folder, lambda x: x.update({"classifier.3.bias": torch.ones(2)})),
        "classifier.3.bias": lambda folder: other_weights(folder, lambda x: x["classifier.3.bias"].fill_(torch.nan)),
    }
    check_weights(config.output / "checkpoint-4", "remedy", model)
    for folder, words in spoiled(ways):
        with pytest.raises(InputError, match=f"checkpoint-4.*{words}.*remedy"):
            check_weights(folder, "remedy", model)
    ways["extra"](config.output / "checkpoint-4")
    refused(config, "extra")


def test_states_of_another_run_are_refused(config, spoiled):
    for _, words in spoiled(
        {
            "optimizer.pt": lambda folder: torch.save({"state": {}, "param_groups": []}, folder / "optimizer.pt"),
            "scheduler.pt": lambda folder: torch.save([1], folder / "scheduler.pt"),
        }
    ):
        refused(config, words)
    for folder, words in spoiled(
        {
            "rng_state.pth": lambda folder: torch.save({"cpu": torch.zeros(3)}, folder / "rng_state.pth"),
            f"{STATE} ": lambda folder: (folder / STATE).write_text("[1]"),
            f"{STATE} is": lambda folder: (folder / STATE).write_text('{"step": 4}'),
            "of step 2, not 4": lambda folder: shutil.copy(config.output / "checkpoint-2" / STATE, folder),
            "trainer_state": lambda folder: [file.unlink() for file in folder.iterdir()],
        }
    ):
        with pytest.raises(InputError, match=f"{words}.*checkpoint-2, or give resume=false"):
            check_complete(folder)


def test_a_tracker_that_fails_does_not_blame_the_checkpoint(config):
    (config.output / "runs").write_text("a file, where TensorBoard makes a folder")
    with pytest.raises(InputError, match=r"cannot be written: .*the last complete checkpoint is .*checkpoint-4;"):
        train(config, report_to=("tensorboard",))


def test_a_tracker_finds_the_complete_checkpoint_and_costs_none(config, monkeypatch):
    found = []

    def upload(self, args, state, control, **kwargs):
        found.extend(file.name for file in (Path(args.output_dir) / f"checkpoint-{state.global_step}").iterdir())
        raise ConnectionError("no network")

    monkeypatch.setattr(TensorBoardCallback, "on_save", upload)
    with pytest.raises(ConnectionError):
        train(config, report_to=("tensorboard",))
    assert {*READ, "reduction.json", "tokenizer.json"} <= set(found)
    assert checkpoints(config.output)[-1].name == "checkpoint-6"
    check_complete(checkpoints(config.output)[-1])


def test_states_of_several_processes(config, caplog):
    """Each has a file; without one, its dropout would be drawn anew in silence."""
    newest = config.output / "checkpoint-4"
    (newest / "rng_state.pth").rename(newest / "rng_state_1.pth")
    refused(config, "rng_state_0.pth")
    shutil.copy(newest / "rng_state_1.pth", newest / "rng_state_0.pth")
    assert train(config)["resumed_from"] == 4
    assert "2 processes" in caplog.text


def test_float16_needs_the_state_of_its_scaler(config):
    newest = config.output / "checkpoint-4"
    check_complete(newest, scaled=False)
    with pytest.raises(InputError, match=r"scaler\.pt"):
        check_complete(newest, scaled=True)
    torch.save({"scale": 1.0}, newest / "scaler.pt")
    check_complete(newest, scaled=True)
    cut(newest / "scaler.pt")
    with pytest.raises(InputError, match=r"scaler\.pt"):
        check_complete(newest, scaled=False)


def test_shards_belong_to_their_index(config):
    newest = config.output / "checkpoint-4"
    pumer.load(newest).save_pretrained(newest, max_shard_size="50KB")
    check_complete(newest)
    shard = min(newest.glob("model-*"))
    cut(shard)
    with pytest.raises(InputError, match=shard.name):
        check_complete(newest)
    shard.unlink()
    with pytest.raises(InputError, match=shard.name):
        check_complete(newest)


def test_the_best_checkpoint_is_needed_in_the_end(training, monkeypatch):
    """What early stopping gives back must not be the last model in place of the best."""
    config = dataclasses.replace(
        training, optimizer=dataclasses.replace(training.optimizer, lr=1e-12, end_lr=0.0), eval_steps=2, patience=9
    )
    original = DistillingTrainer.training_step

    def losing(self, *args, **kwargs):
        if self.state.global_step == 5:
            other_weights(config.output / "checkpoint-2", lambda tensors: tensors.pop("classifier.3.weight"))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DistillingTrainer, "training_step", losing)
    with pytest.raises(InputError, match=r"checkpoint-2.*classifier\.3\.weight"):
        train(config)
    assert not (config.output / WEIGHTS).exists()
    shutil.rmtree(config.output / "checkpoint-2")
    with pytest.raises(InputError, match=r"checkpoint-2"):
        train(config)
    assert not (config.output / WEIGHTS).exists()


def test_folders_of_other_names_are_no_checkpoints(tmp_path):
    for name in ("checkpoint-12", "checkpoint-7", "checkpoint-best", "checkpoint-abc6", "old-checkpoint-9"):
        (tmp_path / name).mkdir()
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-7", "checkpoint-12"]
    assert last_checkpoint(tmp_path).name == "checkpoint-12"


def test_beginning_anew_removes_no_folder_of_another_name(config):
    (config.output / "checkpoint-mine").mkdir()
    train(config, resume=False, max_steps=1)
    assert (config.output / "checkpoint-mine").is_dir()
    assert [folder.name for folder in checkpoints(config.output)] == ["checkpoint-1"]


def test_a_record_of_something_else_is_refused(config):
    record = config.output / "run.json"
    for content in (json.dumps({"config": 3, "data_fingerprint": "x"}), "[]", "{"):
        record.write_text(content)
        with pytest.raises(InputError, match=r"run\.json|no record"):
            train(config)
    dangle(record)
    with pytest.raises(InputError, match=r"run\.json"):
        train(config)
