"""The training step that is measured is the one that `pumer train` takes."""

import json
import sys

import pytest
import torch

from benchmarks import training_step
from pumer import NoReduction, PuMerConfig, load, patch
from pumer.reducers import config_to_dict
from pumer.training.distillation import divergence

REDUCTION = PuMerConfig(layers=(0, 2), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.2)


@pytest.fixture(params=["tiny_vilt", "tiny_meter"])
def folder(request):
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def case(folder):
    return training_step.Case(folder, {"reduced": config_to_dict(REDUCTION)})


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if "config" in vars(module):
            module.config.attention_probs_dropout_prob = 0.0


def test_a_step_lowers_the_loss_and_imitates_the_teacher(case, folder):
    model, teacher = patch(load(folder), REDUCTION), patch(load(folder), NoReduction())
    without_dropout(model)
    inputs = training_step.batches(case, model)(4)
    still, optimizer = torch.optim.SGD(model.parameters(), lr=0.0), torch.optim.AdamW(model.parameters(), lr=1e-3)
    targets = inputs["targets"]
    given = {name: tensor for name, tensor in inputs.items() if name != "targets"}
    with torch.no_grad():
        logits, imitated = model(**given).logits, teacher(**given).logits
    task_loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
    taught = task_loss + divergence(logits, imitated)
    with torch.inference_mode():  # as the timer runs it
        alone = training_step.TrainingStep(model, still)(**inputs)
        losses = [training_step.TrainingStep(model, optimizer, teacher)(**inputs) for _ in range(6)]
    assert alone.item() == pytest.approx(task_loss.item(), abs=1e-5)
    assert losses[0].item() == pytest.approx(taught.item(), abs=1e-5)
    assert losses[-1] < losses[0]


def test_rows_share_weights_and_are_timed_against_the_unreduced(case):
    result = training_step.times(case, batch=2, rounds=3)
    assert set(result) == {training_step.ALONE, training_step.WITH_TEACHER}
    for group in result.values():
        assert list(group["models"]) == [training_step.UNREDUCED, "reduced"]
        assert group["models"][training_step.UNREDUCED]["speedup"]["median"] == 1
        assert group["pairs"] == 3


def test_memory_counts_what_is_held(folder, case):
    rows = case.rows()
    job = training_step.Job(folder, rows["reduced"], 2, teacher=True)
    figures = training_step.measure(job)
    weights = figures["weights"]
    assert 4.9 * weights < figures["held"] <= 5.1 * weights  # the model, its gradients, two moments, the teacher
    assert figures["activations"] >= 0


def test_the_result_file_and_the_table(case, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(training_step.CASES, "vilt", case)
    monkeypatch.setattr(
        training_step, "measured_apart", lambda program, job: training_step.measure(training_step.Job(**job))
    )
    monkeypatch.setattr(sys, "argv", ["training_step.py", "vilt", "--batch=2", "--rounds=1", f"--results={tmp_path}"])
    training_step.main()
    (path,) = tmp_path.iterdir()
    result = json.loads(path.read_text())
    assert path.name.startswith("training-step-vilt-")
    assert result["provenance"]["config"]["batch"] == 2
    memory, alone, taught = result["memory"], training_step.ALONE, training_step.WITH_TEACHER
    for group in (alone, taught):
        assert list(memory[group]) == list(result["time"][group]["models"]) == [training_step.UNREDUCED, "reduced"]
    assert memory[taught]["reduced"]["held"] > memory[alone]["reduced"]["held"]
    assert str(tmp_path) not in json.dumps(memory) + json.dumps(result["time"])
    printed = capsys.readouterr().out
    assert printed.count("reduced") >= 4
