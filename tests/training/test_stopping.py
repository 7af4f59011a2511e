"""How runs end early, and that the same command goes on as if they had not."""

import dataclasses
import errno
import re
import resource
import shutil
import signal

import pytest
import torch
import yaml
from safetensors import SafetensorError
from transformers import PreTrainedModel
from typer.testing import CliRunner

import pumer
from pumer.cli import app
from pumer.tasks import VQAv2
from pumer.training import checkpoints as checkpoints_module
from pumer.training.run import run
from pumer.training.stopping import Interrupted, StopOnSignal, write_errors_stop
from pumer.training.teacher import Teacher
from pumer.training.trainer import DistillingTrainer
from pumer.utils.config import to_dict
from pumer.utils.errors import InputError


def train(config, **changes):
    return run(dataclasses.replace(config, **changes), progress=False)


def folders(config):
    """What lies in the output but plain files."""
    return sorted(path.name for path in config.output.iterdir() if path.is_dir())


def same(left, right):
    one, other = pumer.load(left).state_dict(), pumer.load(right).state_dict()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def config(training):
    """Eight steps, a checkpoint after every second."""
    return dataclasses.replace(training, eval_steps=2, max_steps=8, data=dataclasses.replace(training.data, eval=None))


def during_step(monkeypatch, number, act):
    """Do something before the forward of a step, counted from 1."""
    original, calls = DistillingTrainer.training_step, []

    def step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            act()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DistillingTrainer, "training_step", step)
    return calls


def spoil_loss(monkeypatch, spoil, number):
    """Change the task's loss of one step, counted from 1."""
    original, calls = VQAv2.loss, []

    def loss(self, logits, batch):
        calls.append(1)
        value = original(self, logits, batch)
        return spoil(value, logits) if len(calls) == number else value

    monkeypatch.setattr(VQAv2, "loss", loss)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda loss, logits: loss + float("inf"), "the loss is inf at step 4"),
        (lambda loss, logits: loss + (0 * logits.sum()).abs().sqrt(), "norm of the gradients is nan at step 4"),
    ],
)
def test_a_diverged_run_stops_before_its_weights_are_spoiled(config, monkeypatch, spoil, message):
    with monkeypatch.context() as patch:
        spoil_loss(patch, lambda loss, logits: loss * float("nan"), 1)
        with pytest.raises(InputError, match="the loss is nan at step 1; no checkpoint was complete yet"):
            train(config)
    spoil_loss(monkeypatch, spoil, 4)
    with pytest.raises(InputError, match=f"{message}; the last complete checkpoint is .*checkpoint-2; lower") as error:
        train(config)
    assert "\n" not in str(error.value)
    assert folders(config) == ["checkpoint-2"]
    assert all(tensor.isfinite().all() for tensor in pumer.load(config.output / "checkpoint-2").state_dict().values())


def after_step(monkeypatch, number, act):
    """Do something with the model and its optimizer after the update of a step."""
    original = StopOnSignal.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == number:
            act(kwargs["model"], kwargs["optimizer"])
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(StopOnSignal, "on_step_end", on_step_end)


def spoil_weights(model, optimizer):
    model.classifier[-1].bias.data[0] = float("nan")


def spoil_optimizer(model, optimizer):
    for state in optimizer.state.values():
        state["exp_avg"].fill_(float("nan"))


@pytest.mark.parametrize(
    ("act", "after", "step", "last"), [(spoil_weights, 8, 8, 6), (spoil_weights, 4, 4, 2), (spoil_optimizer, 7, 8, 6)]
)
def test_weights_that_an_update_spoiled_are_not_saved(config, monkeypatch, act, after, step, last):
    """Also those of the very last one, which no later loss shows."""
    after_step(monkeypatch, after, act)
    with pytest.raises(InputError, match=f"at step {step}; the last complete checkpoint is .*checkpoint-{last};"):
        train(config)
    assert all(folder.startswith("checkpoint-") for folder in folders(config))
    assert not (config.output / "model.safetensors").exists() and not (config.output / "README.md").exists()


def test_weights_spoiled_after_the_last_checkpoint(config, monkeypatch):
    original = StopOnSignal.on_save

    def on_save(self, args, state, control, **kwargs):
        original(self, args, state, control, **kwargs)
        if state.global_step == 8:
            spoil_weights(kwargs["model"], None)

    monkeypatch.setattr(StopOnSignal, "on_save", on_save)
    with pytest.raises(InputError, match=r"classifier\.3\.bias.* at step 8; .*checkpoint-8"):
        train(config)
    assert not (config.output / "model.safetensors").exists()


def test_the_last_of_accumulated_batches_diverges(config, monkeypatch):
    spoil_loss(monkeypatch, lambda loss, logits: loss * float("nan"), 2 * 3)
    with pytest.raises(InputError, match="the loss is nan at step 3"):
        train(config, batch_size=2, accumulate=2)


def test_a_teacher_that_is_nan_is_named(config, monkeypatch):
    original = Teacher.__call__

    def spoiled(self, batch):
        output = original(self, batch)
        return dataclasses.replace(output, logits=output.logits * float("inf"))

    monkeypatch.setattr(Teacher, "__call__", spoiled)
    with pytest.raises(InputError, match="the teacher"):
        train(config, teacher="self")


def test_a_second_training_in_the_same_folder_is_refused(config, monkeypatch):
    refused = []

    def again():
        with pytest.raises(InputError, match=str(config.output)) as caught:
            train(config, resume=False)
        refused.append(caught.value)

    during_step(monkeypatch, 5, again)
    assert train(config)["steps"] == 8
    assert len(refused) == 1 and "\n" not in str(refused[0])
    assert train(config)["resumed_from"] == 8


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (torch, "save", OSError(errno.ENOSPC, "No space left on device")),
        (PreTrainedModel, "save_pretrained", SafetensorError("I/O error: No space left on device (os error 28)")),
        (torch, "save", RuntimeError("[enforce fail at inline_container.cc:626] . unexpected pos 64 vs 0")),
    ],
)
def test_full_disk_leaves_the_last_checkpoint(config, monkeypatch, owner, name, error):
    """torch does not report why it could not write; the disk is full as long as the unfinished checkpoint is there."""
    original, usage = getattr(owner, name), shutil.disk_usage

    def left(path):
        return usage(path)._replace(free=0 if (config.output / ".saving").exists() else 2**30)

    monkeypatch.setattr(shutil, "disk_usage", left)

    def full(*args, **kwargs):
        if (config.output / "checkpoint-2").exists():
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, full)
    with pytest.raises(InputError, match=r"disk is full; the last complete checkpoint is .*checkpoint-2"):
        train(config)
    assert folders(config) == ["checkpoint-2"]
    monkeypatch.setattr(owner, name, original)
    assert train(config)["steps"] == 8


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (lambda path: OSError(errno.EDQUOT, "Disk quota exceeded"), "quota"),
        (lambda path: OSError(errno.EFBIG, "File too large"), "ulimit -f"),
        (lambda path: OSError(errno.EACCES, "Permission denied", str(path / "x")), "Permission denied"),
        (lambda path: OSError(errno.EROFS, "Read-only file system", str(path)), "Read-only"),
        (lambda path: OSError(errno.ENOENT, "No such file or directory", path / ".saving"), "No such file"),
        (lambda path: SafetensorError("Error while serializing: I/O error: File too large (os error 27)"), "ulimit -f"),
        (lambda path: RuntimeError("[enforce fail at inline_container.cc:626] . unexpected pos 64 vs 0"), "pos 64"),
        (lambda path: RuntimeError(f"Parent directory {path} does not exist."), "Parent directory"),
    ],
)
def test_what_keeps_a_run_from_writing_is_one_line(tmp_path, error, reason):
    (tmp_path / "checkpoint-4").mkdir()
    with pytest.raises(InputError, match=f"{tmp_path}.*{reason}.*checkpoint-4") as caught, write_errors_stop(tmp_path):
        raise error(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "Permission denied", "/elsewhere/image.jpg"),
        RuntimeError("a defect"),
        RuntimeError("[enforce fail at inline_container.cc:1] . PytorchStreamReader failed reading zip archive"),
    ],
)
def test_other_errors_while_saving_keep_their_traceback(config, monkeypatch, error):
    def broken(*args):
        raise error

    monkeypatch.setattr(checkpoints_module, "write_reduction", broken)
    with pytest.raises(type(error), match=re.escape(error.args[-1]) if len(error.args) == 1 else "Permission denied"):
        train(config)
    assert folders(config) == []


@pytest.mark.parametrize("limit", [60, 150])
def test_a_limit_on_file_sizes(config, limit):
    """In KiB: too small for the weights, or for the optimizer alone, which torch itself writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit * 1024, before[1]))
    try:
        with pytest.raises(InputError) as caught:
            train(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(config.output) in str(caught.value) and "\n" not in str(caught.value)
    assert folders(config) == []
    assert train(config)["steps"] == 8


def test_interruption_saves_the_step_and_the_same_command_goes_on(config, tmp_path, monkeypatch):
    """Through the command line: Ctrl-C in step 3 of 8."""
    train(config, output=tmp_path / "undisturbed")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(to_dict(config)))
    with monkeypatch.context() as patch:
        during_step(patch, 3, lambda: signal.raise_signal(signal.SIGINT))
        result = CliRunner().invoke(app, ["train", str(recipe)])
    assert result.exit_code == 130
    folder = config.output / "checkpoint-3"
    assert f"interrupted; step 3 is saved in {folder}: the same command continues" in result.output.replace("\n", " ")
    assert folders(config) == ["checkpoint-3"]
    pumer.load(folder)
    calls = during_step(monkeypatch, 0, None)
    assert CliRunner().invoke(app, ["train", str(recipe)]).exit_code == 0
    assert len(calls) == 5
    assert same(config.output, tmp_path / "undisturbed")


def test_interruption_at_the_end_of_an_epoch_waits_for_its_evaluation(training, tmp_path, monkeypatch):
    """What early stopping counts must not depend on the interruption."""
    config = dataclasses.replace(training, eval_steps=None, max_steps=None, epochs=2, patience=1)
    undisturbed = train(config, output=tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        during_step(patch, 6, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted, match="step 6 is saved"):
            train(config)
    again = train(config)
    evaluated = [
        [(entry["step"], entry["eval_accuracy"]) for entry in result["history"] if "eval_accuracy" in entry]
        for result in (undisturbed, again)
    ]
    assert evaluated[0] == evaluated[1]
    assert same(config.output, tmp_path / "undisturbed")


def test_a_second_signal_stops_at_once(config, monkeypatch):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    during_step(monkeypatch, 3, twice)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(config)
    assert not isinstance(stopped.value, Interrupted)
    assert folders(config) == ["checkpoint-2"]


def test_signals_are_given_back(config):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(config, max_steps=1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_run_that_ended_in_the_middle_of_an_epoch_is_not_trained_on(config, monkeypatch):
    train(config, max_steps=4)
    calls = during_step(monkeypatch, 0, None)
    assert train(config, max_steps=4)["steps"] == 4
    assert calls == []
