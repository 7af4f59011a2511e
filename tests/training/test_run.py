"""Training through the real job on a tiny model and a tiny data folder in the official format."""

import dataclasses
import itertools
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from tiny import TINY

import pumer
from pumer.checkpoint import saved_files
from pumer.evaluation import evaluate
from pumer.evaluation.evaluate import labels_of
from pumer.reducers import DynamicViTConfig
from pumer.settings.common import AugmentConfig
from pumer.settings.evaluate import EvaluateConfig
from pumer.settings.train import DistillationConfig, OptimizerConfig, TrainingData
from pumer.tasks import VQAv2
from pumer.tasks.loading import Collator, Examples, make_inputs
from pumer.training.run import _one_device, run
from pumer.training.stopping import last_checkpoint
from pumer.training.teacher import Teacher
from pumer.training.trainer import DistillingTrainer
from pumer.utils.errors import InputError
from pumer.utils.files import read_json

REDUCTION = {"method": "pumer", "layers": [2, 5, 8], "prune_ratio": 0.1, "merge_ratio": 0.3, "text_merge_ratio": 0.2}

LEARNING = {"method": "dynamicvit", "layers": [2, 5], "prune_ratio": 0.4}


@pytest.fixture
def config(training):
    return training


def change(config, **changes):
    return dataclasses.replace(config, **changes)


def train(config, **changes):
    return run(change(config, **changes), progress=False)


def weights(folder):
    return pumer.load(folder).state_dict()


def same(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


def test_waiting_for_examples_is_counted_step_by_step(config, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("pumer.training.trainer.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    result = train(config)
    assert result["input_seconds"] == read_json(config.output / "run.json")["input_seconds"] == result["steps"] == 6


def test_trained_model_is_saved_with_all_that_belongs_to_it(config):
    result = train(config, teacher="self")
    assert result["steps"] == 6
    assert 0 <= result["accuracy"]["low"] <= result["accuracy"]["mean"] <= result["accuracy"]["high"] <= 1
    record = read_json(config.output / "run.json")
    assert record["accuracy"] == result["accuracy"]
    assert record["config"]["reduction"] == REDUCTION
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


def test_training_learns(config):
    result = train(config, max_steps=90, reduction="none", data=dataclasses.replace(config.data, eval="train"))
    losses = [entry["loss"] for entry in result["history"] if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    assert result["accuracy"]["mean"] > 0.7


def test_same_config_same_weights(config, tmp_path):
    train(config)
    train(config, output=tmp_path / "again")
    assert same(weights(config.output), weights(tmp_path / "again"))
    train(config, output=tmp_path / "other", seed=1)
    assert not same(weights(config.output), weights(tmp_path / "other"))


@pytest.mark.parametrize(("teacher", "reduction"), [(None, REDUCTION), ("self", REDUCTION), ("self", LEARNING)])
def test_interrupted_run_ends_where_an_undisturbed_one_does(config, tmp_path, monkeypatch, teacher, reduction):
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
    evaluate.run(EvaluateConfig(str(config.output), reduction=other))
    assert "they are random" not in caplog.text
    evaluate.run(EvaluateConfig(str(config.output), reduction=LEARNING | {"layers": [2, 6]}))
    assert "none for these layers: they are random" in caplog.text


def test_finished_run_is_not_trained_again(config):
    first = train(config)
    before = weights(config.output)
    again = train(config)
    assert again["steps"] == 6
    assert again["accuracy"] == first["accuracy"]
    assert same(before, weights(config.output))


def test_run_with_other_settings_is_not_continued(config):
    train(config)
    with pytest.raises(InputError, match=r"holds a run with max_steps=6, not 7; .*resume=false"):
        train(config, max_steps=7)
    train(config, log_steps=3, workers=0)
    assert train(config, max_steps=2, resume=False)["steps"] == 2
    assert last_checkpoint(config.output).name == "checkpoint-2"


def test_a_run_is_not_continued_on_other_data(config, tiny_vqa, tmp_path):
    root = shutil.copytree(tiny_vqa, tmp_path / "data")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=root))
    train(config)
    annotations = root / "v2_mscoco_train2014_annotations.json"
    annotations.write_text(annotations.read_text() + "\n")
    with pytest.raises(InputError, match=r"data is not what the run in .* began with; .*resume=false"):
        train(config)
    assert train(config, resume=False)["steps"] == 6


def test_an_output_that_is_a_file_is_refused_before_any_work(config, tmp_path, monkeypatch):
    monkeypatch.setattr("pumer.training.run._prepare", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is not writable"):
        train(config, output=tmp_path / "file")


def test_a_finished_run_is_not_trained_over_with_other_settings(config):
    train(config)
    shutil.rmtree(last_checkpoint(config.output))
    with pytest.raises(InputError, match=r"holds a run with max_steps=6, not 7"):
        train(config, max_steps=7)
    (config.output / "run.json").unlink()
    with pytest.raises(InputError, match=f"{config.output} .* no record"):
        train(config)


def test_no_run_begins_anew_over_a_model_that_no_training_made(config):
    pumer.save(TINY["vilt"].build(), config.output)
    before = {file.name: file.read_bytes() for file in saved_files(config.output)}
    for resume in (True, False):
        with pytest.raises(InputError, match=f"{config.output} .* no record"):
            train(config, resume=resume)
    assert {file.name: file.read_bytes() for file in saved_files(config.output)} == before != {}


def test_a_run_begun_anew_leaves_no_weights_of_the_old_one_beside_its_record(config, monkeypatch):
    train(config)

    def killed(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(DistillingTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config, max_steps=7, resume=False)
    assert read_json(config.output / "run.json")["config"]["max_steps"] == 7
    assert saved_files(config.output) == []


def test_rates_are_of_the_call_alone(config, monkeypatch):
    whole = train(config)
    assert whole["resumed_from"] == 0
    assert whole["samples_per_second"] == pytest.approx(6 * config.batch_size / whole["seconds"], rel=1e-3)
    nothing = train(config)
    assert (nothing["resumed_from"], nothing["samples_per_second"], nothing["loss"]) == (6, 0.0, None)


def test_accumulated_steps_equal_one_large_step(config, tmp_path):
    large = train(config, max_steps=2, batch_size=4)
    small = train(config, max_steps=2, batch_size=2, accumulate=2, output=tmp_path / "accumulated")
    for one, other in zip(large["history"][:2], small["history"][:2], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
    ours, theirs = weights(config.output), weights(tmp_path / "accumulated")
    for name in ours:
        if not name.endswith("key.bias"):  # their gradient is zero but for rounding, which Adam blows up
            assert torch.allclose(ours[name], theirs[name], atol=1e-5), name


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_learning_rate_warms_up_and_falls_to_its_end(config, power):
    optimizer = OptimizerConfig(lr=1e-2, end_lr=1e-5, warmup=0.4, power=power)
    history = train(config, max_steps=10, optimizer=optimizer, reduction="none")["history"]
    seen = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    warm = [1e-2 * step / 4 for step in range(4)]
    fall = [1e-5 + (1e-2 - 1e-5) * (1 - step / 6) ** power for step in range(6)]
    assert seen == pytest.approx(warm + fall, rel=1e-6)


def test_early_stopping_keeps_the_best(config):
    optimizer = OptimizerConfig(lr=1e-9, end_lr=0.0)  # nothing ever gets better
    result = train(config, optimizer=optimizer, epochs=9, max_steps=None, patience=2)
    assert result["steps"] == 3 * 6


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


def test_gradients_are_clipped(config):
    """With plain SGD, a step is as long as the learning rate times the clipped norm."""
    optimizer = OptimizerConfig(
        name="sgd", lr=0.5, head_factor=1, weight_decay=0, warmup=0, end_lr=0, max_grad_norm=1e-3
    )
    data = dataclasses.replace(config.data, eval=None)
    torch.manual_seed(0)
    before = VQAv2.model(config.model, VQAv2.vocabulary(data.root, 1)).state_dict()
    train(config, max_steps=1, reduction="none", optimizer=optimizer, data=data)
    after = weights(config.output)
    moved = sum((after[name].double() - before[name].double()).square().sum() for name in before) ** 0.5
    assert moved.item() == pytest.approx(0.5 * 1e-3, rel=1e-2)


def test_checkpointed_activations_change_nothing(config, tmp_path):
    data = dataclasses.replace(config.data, eval=None)
    train(config, max_steps=2, teacher="self", data=data)
    train(config, max_steps=2, teacher="self", data=data, gradient_checkpointing=True, output=tmp_path / "again")
    ours, theirs = weights(config.output), weights(tmp_path / "again")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)


def test_one_of_several_gpus_is_used(caplog):
    arguments = SimpleNamespace(n_gpu=2, _n_gpu=2)
    assert _one_device(arguments)._n_gpu == 1
    assert "one of 2 GPUs is used; `torchrun --nproc-per-node 2" in caplog.text


def test_compiled_training(config, tmp_path):
    data = dataclasses.replace(config.data, eval=None)
    plain = train(config, max_steps=2, teacher="self", data=data)
    compiled = train(config, max_steps=2, teacher="self", data=data, compile="eager", output=tmp_path / "again")
    for one, other in zip(plain["history"][:2], compiled["history"][:2], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    assert weights(config.output).keys() == weights(tmp_path / "again").keys()
    assert weights(config.output).keys() == weights(tmp_path / "again" / "checkpoint-2").keys()


def test_hidden_states_are_distilled(config):
    """The loss that is logged for the first step falls apart into its terms."""
    data, first = dataclasses.replace(config.data, eval=None), {}
    for weight in (0.0, 1.0, 2.0):
        distillation = DistillationConfig(hidden_weight=weight)
        teaching = {"teacher": "self", "distillation": distillation, "data": data, "resume": False}
        first[weight] = train(config, max_steps=1, **teaching)["history"][0]["loss"]
    hidden = first[1.0] - first[0.0]
    assert hidden > 1e-3
    assert first[2.0] == pytest.approx(first[0.0] + 2 * hidden, rel=1e-4)


def test_augmented_training_differs_and_repeats(config, tmp_path):
    train(config, max_steps=2)
    for name in ("one", "two"):
        train(config, max_steps=2, augment=AugmentConfig(), output=tmp_path / name)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))
    assert not same(weights(tmp_path / "one"), weights(config.output))


def test_bfloat16(config):
    result = train(config, precision="bf16", teacher="self")
    assert math.isfinite(result["loss"])
    assert result["dtype"] == "bfloat16 autocast"
    assert pumer.load(config.output).dtype == torch.float32


def test_aspect_and_workers(config):
    assert train(config, resize="aspect", workers=1, max_steps=2)["steps"] == 2


@pytest.mark.parametrize("blank", ["image", "text"])
def test_blind_models(config, blank):
    assert train(config, blank=blank, reduction="none", max_steps=2)["steps"] == 2


def test_no_evaluation_split(config):
    assert "accuracy" not in train(config, data=dataclasses.replace(config.data, eval=None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "vqa"}, "task 'vqa' is unknown; there are: vqav2"),
        ({"reduction": "tom"}, "reduction method 'tom' is unknown"),
        ({"reduction": {**REDUCTION, "layers": [12]}}, "12"),
        ({"reduction": {**REDUCTION, "merge_ratio": 1.0}}, "1.0"),
        ({"text_length": 13}, r"text_length must lie in \[2, 12\]"),
        ({"model": "/nowhere"}, "/nowhere"),
    ],
)
def test_unusable_settings_are_named_before_training(config, changes, message):
    with pytest.raises(InputError, match=message):
        train(config, **changes)
    assert not (config.output / "run.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, r"epochs must lie in \[1, .*not 0"),
        ({"max_steps": 0}, r"max_steps must lie in \[1, .*not 0"),
        ({"patience": 1, "data": TrainingData("x", eval=None)}, "patience counts evaluations"),
    ],
)
def test_values_without_a_meaning_are_refused(config, changes, message):
    with pytest.raises(InputError, match=message):
        change(config, **changes)


def test_teacher_with_other_answers_is_refused(config, tmp_path):
    teacher = VQAv2.model(config.model, ["red", "blue"])
    pumer.save(teacher, tmp_path / "teacher")
    with pytest.raises(InputError, match=r"knows other answers \(2\)"):
        train(config, teacher=str(tmp_path / "teacher"))


@pytest.fixture
def trainer(config, tmp_path):
    """A trainer with a teacher of its own weights, before its first step."""
    from transformers import TrainingArguments

    from pumer.checkpoint import load_processor

    task = VQAv2(VQAv2.vocabulary(config.data.root, 1))
    model, teacher = (pumer.patch(task.model(config.model, task.labels), pumer.NoReduction()) for _ in range(2))
    collate = Collator(task, make_inputs(load_processor(config.model), 12))
    arguments = TrainingArguments(output_dir=str(tmp_path), learning_rate=1e-3, weight_decay=0.01, report_to=[])
    return DistillingTrainer(
        model=model,
        args=arguments,
        train_dataset=Examples(task.read(config.data.root, "train")),
        data_collator=collate,
        task=task,
        teacher=Teacher(teacher, task),
        optimizer=OptimizerConfig(lr=1e-3, head_factor=10.0),
    )


def batch_of(trainer):
    return trainer.data_collator([trainer.train_dataset[index] for index in range(4)])


def test_loss_is_the_tasks_plus_the_divergence(trainer):
    batch = batch_of(trainer)
    logits = trainer.model(**batch["inputs"]).logits
    alone = trainer.task.loss(logits, batch)
    trainer.model.train()
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(alone.item())  # the teacher agrees
    with torch.no_grad():
        trainer.teacher.model.classifier[-1].bias += torch.arange(5)
    taught = (logits + torch.arange(5)).softmax(-1)
    kl = (taught * (taught.log() - logits.log_softmax(-1))).sum() / 4
    loss = trainer.compute_loss(trainer.model, batch)
    assert loss.item() == pytest.approx((alone + kl).item(), rel=1e-5)
    loss.backward()
    assert all(parameter.grad is None for parameter in trainer.teacher.model.parameters())
    trainer.model.eval()
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(alone.item())


def test_optimizer_has_the_papers_groups(trainer):
    optimizer = trainer.create_optimizer()
    setting = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    named = dict(trainer.model.named_parameters())
    assert len(setting) == len(named)
    norms = {name for name, module in trainer.model.named_modules() if isinstance(module, torch.nn.LayerNorm)}
    for name, parameter in named.items():
        lr = 1e-2 if name.startswith("classifier.") else 1e-3
        free = name.endswith("bias") or name.rpartition(".")[0] in norms
        assert setting[id(parameter)] == pytest.approx((lr, 0.0 if free else 0.01)), name
