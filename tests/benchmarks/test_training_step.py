"""The training step that is measured is the one that `pumer train` takes."""

import json
import sys
from pathlib import Path

import pytest
import torch

from pumer import NoReduction, PuMerConfig, load, patch
from pumer.reducers import config_to_dict
from pumer.training.distill import divergence

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training_step.py"
REDUCTION = PuMerConfig(layers=(0, 2), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.2)


@pytest.fixture(params=["tiny_vilt", "tiny_meter"])
def folder(request):
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def case(script, folder):
    return script.Case(folder, {"reduced": config_to_dict(REDUCTION)})


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if "config" in vars(module):
            module.config.attention_probs_dropout_prob = 0.0


def test_a_step_lowers_the_loss_and_imitates_the_teacher(script, case, folder):
    model, teacher = patch(load(folder), REDUCTION), patch(load(folder), NoReduction())
    without_dropout(model)
    inputs = script.batches(case, model)(4)
    still, optimizer = torch.optim.SGD(model.parameters(), lr=0.0), torch.optim.AdamW(model.parameters(), lr=1e-3)
    targets = inputs["targets"]
    given = {name: tensor for name, tensor in inputs.items() if name != "targets"}
    with torch.no_grad():
        logits, imitated = model(**given).logits, teacher(**given).logits
    task_loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
    taught = task_loss + divergence(logits, imitated)
    with torch.inference_mode():  # as the timer runs it
        alone = script.TrainingStep(model, still)(**inputs)
        losses = [script.TrainingStep(model, optimizer, teacher)(**inputs) for _ in range(6)]
    assert alone.item() == pytest.approx(task_loss.item(), abs=1e-5)
    assert losses[0].item() == pytest.approx(taught.item(), abs=1e-5)
    assert losses[-1] < losses[0]


def test_rows_share_weights_and_are_timed_against_the_unreduced(script, case):
    result = script.times(case, batch=2, rounds=3)
    assert set(result) == {script.ALONE, script.TAUGHT}
    for group in result.values():
        assert list(group["models"]) == [script.UNREDUCED, "reduced"]
        assert group["models"][script.UNREDUCED]["speedup"]["median"] == 1
        assert group["pairs"] == 3


def test_memory_counts_what_is_held(script, folder, case):
    rows = case.rows()
    job = script.Job(folder, rows["reduced"], 2, teacher=True)
    figures = script.measure(job)
    weights = figures["weights"]
    assert 4.9 * weights < figures["held"] <= 5.1 * weights  # the model, its gradients, two moments, the teacher
    assert figures["activations"] >= 0


def test_the_result_file_and_the_table(script, case, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(script.CASES, "vilt", case)
    monkeypatch.setattr(script, "measured_apart", lambda program, job: script.measure(script.Job(**job)))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "vilt", "--batch=2", "--rounds=1", f"--results={tmp_path}"])
    script.main()
    (path,) = tmp_path.iterdir()
    result = json.loads(path.read_text())
    assert path.name.startswith("training-step-vilt-")
    assert result["provenance"]["config"]["batch"] == 2
    for group in (script.ALONE, script.TAUGHT):
        assert list(result["memory"][group]) == list(result["time"][group]["models"]) == [script.UNREDUCED, "reduced"]
    assert result["memory"][script.TAUGHT]["reduced"]["held"] > result["memory"][script.ALONE]["reduced"]["held"]
    assert str(tmp_path) not in json.dumps(result["memory"]) + json.dumps(result["time"])
    printed = capsys.readouterr().out
    assert printed.count("reduced") >= 4
