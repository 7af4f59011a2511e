"""Training through the real job on a tiny model and a tiny data folder in the official format."""

import dataclasses
import itertools
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from tiny import TINY
from transformers import Trainer

import pumer
from pumer.checkpoint import load_processor, saved_files
from pumer.evaluation import evaluate
from pumer.reducers import DynamicViTConfig
from pumer.settings.common import AugmentConfig
from pumer.settings.evaluate import EvaluateConfig
from pumer.settings.train import DistillationConfig, OptimizerConfig
from pumer.tasks import VQAv2
from pumer.tasks.session import labels_of
from pumer.training.arguments import use_one_device
from pumer.training.checkpoints import last_checkpoint
from pumer.training.run import _read, _trainer, run
from pumer.training.trainer import DistillingTrainer
from pumer.utils.errors import InputError
from pumer.utils.files import read_json
from pumer.utils.progress import progress_bar

LEARNING = {"method": "dynamicvit", "layers": [2, 5], "prune_ratio": 0.4}


@pytest.fixture
def config(training):
    return training


@pytest.fixture
def unevaluated(training):
    return change(training, data=change(training.data, eval=None))


def change(config, **changes):
    return dataclasses.replace(config, **changes)


def train(config, **changes):
    return run(change(config, **changes), progress=False)


def weights(folder):
    return pumer.load(folder).state_dict()


def same(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


def losses(result):
    return [entry["loss"] for entry in result["history"] if "loss" in entry]


def test_trained_model_is_saved_with_all_that_belongs_to_it(config, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("pumer.training.trainer.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    result = train(config, teacher="self")
    assert result["steps"] == result["input_seconds"] == 6
    assert 0 <= result["accuracy"]["low"] <= result["accuracy"]["mean"] <= result["accuracy"]["high"] <= 1
    assert result["samples_per_second"] == pytest.approx(6 * config.batch_size / result["seconds"], rel=1e-3)
    record = read_json(config.output / "run.json")
    assert record["accuracy"] == result["accuracy"]
    assert record["config"]["reduction"] == config.reduction
    assert {"device", "versions", "dtype", "command", "commit"} <= record.keys()
    for folder in (config.output, config.output / "checkpoint-6"):
        model = pumer.load(folder)
        assert [step.layer for step in pumer.reduction(model).schedule] == [2, 5, 8]
        assert labels_of(model) == ("blue", "green", "no", "red", "yes")
        pumer.checkpoint.load_processor(folder)
    assert same(weights(config.output), weights(config.output / "checkpoint-6"))


def test_record_is_there_from_the_first_step_and_tensorboard_is_written(config, monkeypatch):
    original, seen = DistillingTrainer.training_step, []

    def step(self, *args, **kwargs):
        seen.append(read_json(config.output / "run.json"))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DistillingTrainer, "training_step", step)
    result = train(config, max_steps=1, report_to=("tensorboard",))
    assert seen[0].keys() >= {"config", "commit", "versions", "data_fingerprint"}
    assert seen[0]["config"]["optimizer"]["head_factor"] == 10.0
    assert "steps" not in seen[0]
    record = read_json(config.output / "run.json")
    assert record["data_fingerprint"] == seen[0]["data_fingerprint"] == result["data_fingerprint"]
    assert (record["steps"], record["questions"]) == (1, 12)
    assert list((config.output / "runs").rglob("events.out.tfevents.*"))
    assert not (config.output / ".saving").exists()


def test_training_learns(config):
    result = train(config, max_steps=90, reduction="none", data=change(config.data, eval="train"))
    assert losses(result)[-1] < losses(result)[0] / 2
    assert result["accuracy"]["mean"] > 0.7


def test_same_config_same_weights(unevaluated, tmp_path):
    def trained(name, **changes):
        train(unevaluated, max_steps=2, output=tmp_path / name, **changes)
        return weights(tmp_path / name)

    plain, augmented = trained("one"), trained("augmented", augment=AugmentConfig())
    assert same(plain, trained("two"))
    assert same(augmented, trained("augmented again", augment=AugmentConfig()))
    assert not same(plain, augmented)
    assert not same(plain, trained("another seed", seed=1))


@pytest.mark.parametrize(
    ("teacher", "learning"),
    [
        pytest.param(None, False, marks=pytest.mark.slow),
        pytest.param("self", False, marks=pytest.mark.slow),  # quick, and killed: test_kill_and_resume.py
        ("self", True),
    ],
)
def test_interrupted_run_ends_where_an_undisturbed_one_does(config, tmp_path, monkeypatch, teacher, learning):
    reduction = LEARNING if learning else config.reduction
    config = change(config, eval_steps=2, max_steps=8, teacher=teacher, reduction=reduction)
    train(config, output=tmp_path / "undisturbed")
    original, calls = DistillingTrainer.training_step, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DistillingTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert last_checkpoint(config.output).name == "checkpoint-4"
    train(config)
    assert len(calls) == 6 + 4
    assert same(weights(config.output), weights(tmp_path / "undisturbed"))


def learned(folder):
    return {name: tensor for name, tensor in weights(folder).items() if ".reducer." in name}


def test_what_a_reduction_learned_is_where_the_next_training_starts(config, tmp_path, caplog):
    train(config, reduction=LEARNING)
    before, fresh = learned(config.output), DynamicViTConfig(layers=(2, 5), prune_ratio=0.4).learned({"fusion": 16})
    assert not torch.equal(before["vilt.reducer.fusion_2.own.weight"], fresh["fusion", 2].own.weight), "it learned"
    still = change(config.optimizer, reduction_factor=0.0)
    other = LEARNING | {"prune_ratio": 0.6}
    train(config, model=str(config.output), output=tmp_path / "more", optimizer=still, reduction=other)
    assert same(before, learned(tmp_path / "more"))
    evaluate.run(EvaluateConfig(model=str(config.output), reduction=other))
    assert "they are random" not in caplog.text
    evaluate.run(EvaluateConfig(model=str(config.output), reduction=LEARNING | {"layers": [2, 6]}))
    assert "for these layers: they are random" in caplog.text


def test_finished_run_is_not_trained_again(config):
    first, before = train(config), weights(config.output)
    again = train(config)
    assert (again["steps"], again["resumed_from"], again["samples_per_second"], again["loss"]) == (6, 6, 0.0, None)
    assert (first["resumed_from"], again["accuracy"]) == (0, first["accuracy"])
    assert same(before, weights(config.output))


def test_run_with_other_settings_is_not_continued(unevaluated):
    config = change(unevaluated, max_steps=2)
    train(config)
    for changes, message in {
        "max_steps=2, not 3": {"max_steps": 3},
        "optimizer.lr=0.001, not 0.5": {"optimizer": OptimizerConfig(lr=0.5)},
        f"data.root={config.data.root}, not /x": {"data": change(config.data, root="/x")},
        "reduction.prune_ratio=0.1, not 0.2": {"reduction": {**config.reduction, "prune_ratio": 0.2}},
    }.items():
        with pytest.raises(InputError, match=rf"holds a run with {changes}; .*resume=false"):
            train(config, **message)
    assert train(config, log_steps=3, workers=0)["resumed_from"] == 2
    assert train(config, max_steps=1, resume=False)["steps"] == 1
    assert last_checkpoint(config.output).name == "checkpoint-1"
    shutil.rmtree(last_checkpoint(config.output))
    with pytest.raises(InputError, match=r"holds a run with max_steps=1, not 2"):
        train(config)
    (config.output / "run.json").unlink()
    with pytest.raises(InputError, match=f"{config.output} .* no record"):
        train(config)


def test_a_run_is_not_continued_on_other_data(unevaluated, tiny_vqa, tmp_path):
    root = shutil.copytree(tiny_vqa, tmp_path / "data")
    config = change(unevaluated, max_steps=1, data=change(unevaluated.data, root=root))
    train(config)
    annotations = root / "v2_mscoco_train2014_annotations.json"
    annotations.write_text(annotations.read_text() + "\n")
    with pytest.raises(InputError, match=r"data is not what the run in .* began with; .*resume=false"):
        train(config)
    assert train(config, resume=False)["steps"] == 1


def test_no_run_begins_anew_over_a_model_that_no_training_made(config):
    pumer.save(TINY["vilt"].build(), config.output)
    before = {file.name: file.read_bytes() for file in saved_files(config.output)}
    for resume in (True, False):
        with pytest.raises(InputError, match=f"{config.output} .* no record"):
            train(config, resume=resume)
    assert {file.name: file.read_bytes() for file in saved_files(config.output)} == before != {}


def test_a_run_begun_anew_leaves_no_weights_of_the_old_one_beside_its_record(unevaluated, monkeypatch):
    train(unevaluated, max_steps=1)

    def killed(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(DistillingTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(unevaluated, max_steps=7, resume=False)
    assert read_json(unevaluated.output / "run.json")["config"]["max_steps"] == 7
    assert saved_files(unevaluated.output) == []


def test_accumulated_steps_equal_one_large_step(unevaluated, tmp_path):
    large = train(unevaluated, max_steps=2, batch_size=4)
    small = train(unevaluated, max_steps=2, batch_size=2, accumulate=2, output=tmp_path / "accumulated")
    for one, other in zip(large["history"][:2], small["history"][:2], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
    ours, theirs = weights(unevaluated.output), weights(tmp_path / "accumulated")
    for name in ours:
        if not name.endswith("key.bias"):  # their gradient is zero but for rounding, which Adam blows up
            assert torch.allclose(ours[name], theirs[name], atol=1e-5), name


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_learning_rate_warms_up_and_falls_to_its_end(unevaluated, power):
    optimizer = OptimizerConfig(lr=1e-2, end_lr=1e-5, warmup=0.4, power=power)
    history = train(unevaluated, max_steps=10, optimizer=optimizer, reduction="none")["history"]
    seen = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    warm = [1e-2 * step / 4 for step in range(4)]
    fall = [1e-5 + (1e-2 - 1e-5) * (1 - step / 6) ** power for step in range(6)]
    assert seen == pytest.approx(warm + fall, rel=1e-6)


def test_early_stopping_keeps_the_best(config):
    optimizer = OptimizerConfig(lr=1e-9, end_lr=0.0)  # nothing ever gets better
    config = change(config, optimizer=optimizer, epochs=9, max_steps=None, patience=2)
    assert train(config)["steps"] == train(config)["steps"] == 3 * 6


def test_the_best_checkpoint_is_kept_and_loaded(config, monkeypatch):
    """The second of four evaluations is the best: its weights are saved, and it outlives newer checkpoints."""
    accuracies = iter([0.2, 0.9, 0.5, 0.5])
    monkeypatch.setattr(DistillingTrainer, "_score", lambda self, predicted: {"accuracy": next(accuracies, 0.9)})
    monkeypatch.setattr(DistillingTrainer, "final_scores", lambda self: ([1.0], ["image"]))
    train(config, max_steps=8, eval_steps=2, patience=3)
    assert {path.name for path in config.output.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-8"}
    assert same(weights(config.output), weights(config.output / "checkpoint-4"))
    state = read_json(config.output / "checkpoint-8" / "trainer_state.json")
    assert state["best_model_checkpoint"] == str(config.output / "checkpoint-4")


def test_gradients_are_clipped(unevaluated):
    """With plain SGD, a step is as long as the learning rate times the clipped norm."""
    optimizer = OptimizerConfig(
        name="sgd", lr=0.5, head_factor=1, weight_decay=0, warmup=0, end_lr=0, max_grad_norm=1e-3
    )
    torch.manual_seed(0)
    before = VQAv2.model(unevaluated.model, VQAv2.vocabulary(unevaluated.data.root, 1)).state_dict()
    train(unevaluated, max_steps=1, reduction="none", optimizer=optimizer)
    after = weights(unevaluated.output)
    moved = sum((after[name].double() - before[name].double()).square().sum() for name in before) ** 0.5
    assert moved.item() == pytest.approx(0.5 * 1e-3, rel=1e-2)


def test_checkpointed_activations_change_nothing(unevaluated, tmp_path):
    train(unevaluated, max_steps=2, teacher="self")
    train(unevaluated, max_steps=2, teacher="self", gradient_checkpointing=True, output=tmp_path / "again")
    ours, theirs = weights(unevaluated.output), weights(tmp_path / "again")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)


def test_one_of_several_gpus_is_used(caplog):
    arguments = SimpleNamespace(n_gpu=2, _n_gpu=2)
    assert use_one_device(arguments)._n_gpu == 1
    assert "one of 2 GPUs is used; `torchrun --nproc-per-node 2" in caplog.text


@pytest.mark.slow
def test_compiled_training(unevaluated, tmp_path):
    plain = train(unevaluated, max_steps=2, teacher="self")
    compiled = train(unevaluated, max_steps=2, teacher="self", compile="eager", output=tmp_path / "again")
    assert losses(plain) == pytest.approx(losses(compiled), rel=1e-4)
    assert weights(unevaluated.output).keys() == weights(tmp_path / "again").keys()
    assert weights(unevaluated.output).keys() == weights(tmp_path / "again" / "checkpoint-2").keys()


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16", "teacher": "self"},
        {"resize": "aspect", "workers": 1},
        {"blank": "image", "reduction": "none"},
        {"blank": "text", "reduction": "none"},
    ],
)
def test_other_ways_to_train(unevaluated, changes):
    result = train(unevaluated, max_steps=2, **changes)
    assert result["steps"] == 2 and math.isfinite(result["loss"]) and "accuracy" not in result
    assert result["dtype"] == ("bfloat16 autocast" if "precision" in changes else "float32")
    assert pumer.load(unevaluated.output).dtype == torch.float32


def test_teacher_with_other_answers_is_refused(config, tmp_path):
    pumer.save(VQAv2.model(config.model, ["red", "blue"]), tmp_path / "teacher")
    with pytest.raises(InputError, match=r"knows other answers \(2\)"):
        train(config, teacher=str(tmp_path / "teacher"))


def test_words_of_the_data_become_tokens(unevaluated, tmp_path):
    path = unevaluated.data.root / "v2_OpenEnded_mscoco_train2014_questions.json"
    path.write_text(path.read_text().replace("what colour", "what hue"))
    config = change(unevaluated, data=change(unevaluated.data, add_words=True), max_steps=2)
    train(config, teacher="self")
    tokenizer = load_processor(config.output).tokenizer
    assert tokenizer.tokenize("what hue") == ["what", "hue"]
    assert pumer.load(config.output).get_input_embeddings().num_embeddings == len(tokenizer)
    train(config, teacher=str(config.output), output=tmp_path / "again")  # both have added the same
    with pytest.raises(InputError, match=r"add_words=False"):
        train(unevaluated, teacher=str(config.output), output=tmp_path / "other")


@pytest.fixture
def trainer(config):
    """Makes a trainer with a teacher of its own weights, before its first step; beside it a batch."""

    def made(**changes):
        settings = change(config, teacher="self", **changes)
        trainer = _trainer(settings, _read(settings), progress_bar(enabled=False))
        return trainer, trainer.data_collator([trainer.train_dataset[index] for index in range(4)])

    return made


def test_loss_is_the_tasks_plus_the_divergence(trainer):
    trainer, batch = trainer(reduction="none")
    logits = trainer.model.eval()(**batch["inputs"]).logits
    alone = trainer.task.loss(logits, batch)
    trainer.model.train()
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(alone.item())  # the teacher agrees
    with torch.no_grad():
        trainer.teacher.model.classifier[-1].bias += torch.arange(5)
    teacher = (logits + torch.arange(5)).softmax(-1)
    kl = (teacher * (teacher.log() - logits.log_softmax(-1))).sum() / 4
    loss = trainer.compute_loss(trainer.model, batch)
    assert loss.item() == pytest.approx((alone + kl).item(), rel=1e-5)
    loss.backward()
    assert all(parameter.grad is None for parameter in trainer.teacher.model.parameters())
    trainer.model.eval()
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(alone.item())


def test_deepspeed_is_asked_for_the_norm_of_its_gradients(trainer, monkeypatch):
    trainer, _ = trainer()
    trainer.is_deepspeed_enabled = True
    monkeypatch.setattr(Trainer, "training_step", lambda *args: torch.tensor(1.0))
    for norm in (None, 2.0, torch.tensor(2.0)):
        monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", lambda *args, norm=norm: norm)
        assert trainer.training_step(trainer.model, {}) == 1
    monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", lambda *args: torch.tensor(float("nan")))
    with pytest.raises(InputError, match="norm of the gradients is nan at step 1"):
        trainer.training_step(trainer.model, {})


def test_hidden_states_are_distilled(trainer):
    loss = {}
    for weight in (0.0, 1.0, 2.0):
        made, batch = trainer(distillation=DistillationConfig(hidden_weight=weight))
        loss[weight] = made.compute_loss(made.model.train(), batch).item()
    hidden = loss[1.0] - loss[0.0]
    assert hidden > 1e-3
    assert loss[2.0] == pytest.approx(loss[0.0] + 2 * hidden, rel=1e-4)


def test_optimizer_has_the_papers_groups(trainer):
    trainer, _ = trainer()
    optimizer = trainer.create_optimizer()
    setting = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    named = dict(trainer.model.named_parameters())
    assert len(setting) == len(named)
    norms = {name for name, module in trainer.model.named_modules() if isinstance(module, torch.nn.LayerNorm)}
    for name, parameter in named.items():
        lr = 1e-2 if name.startswith("classifier.") else 1e-3
        free = name.endswith("bias") or name.rpartition(".")[0] in norms
        assert setting[id(parameter)] == pytest.approx((lr, 0.0 if free else 0.01)), name
