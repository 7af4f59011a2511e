"""How runs with several seeds become rows, and which of the work a process does."""

from pathlib import Path

import pytest
from rich.console import Console

from pumer.checkpoint import write_json

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "distillation_rows.py"


def right_up_to(folder, key, right, questions=100):
    """Answers of a model that knows the first `right` of a hundred questions."""
    scores = [float(number < right) for number in range(questions)]
    entries = [{"id": number, "answer": "yes", "score": score} for number, score in enumerate(scores)]
    write_json(folder / "answers" / f"{key}.json", {"model": key, "split": "val", "examples": entries})
    difference = {
        "model": "original",
        "difference": {"mean": 0.0, "low": 0.0, "high": 0.0},
        "agreement": right / questions,
    }
    return {"accuracy": {"mean": right / questions, "low": 0.0, "high": 1.0}, "difference": difference}


def test_rows_are_means_over_seeds_paired_by_question(script, tmp_path):
    right = {"labels": (50, 60, 70), "distilled": (80, 80, 80), "hidden": (90, 85, 95)}
    done = {
        "test-original": right_up_to(tmp_path, "original", 90),
        "test-untuned": right_up_to(tmp_path, "untuned", 40),
    }
    for row, counts in right.items():
        for seed, count in enumerate(counts):
            done[f"test-{row}-{seed}"] = right_up_to(tmp_path, f"{row}-{seed}", count)
    result = script._result(tmp_path, script.Size(), done)
    rows = result["rows"]
    assert [rows[row]["accuracy"]["mean"] for row in right] == pytest.approx([0.6, 0.8, 0.9])
    assert [rows[row]["difference"]["mean"] for row in right] == pytest.approx([-0.3, -0.1, 0.0])
    assert rows["labels"]["difference_to_labels"] is None
    assert rows["hidden"]["difference_to_labels"]["mean"] == pytest.approx(0.3)
    assert rows["labels"]["agreement"] == pytest.approx(0.6)
    assert rows["labels"]["deviation_between_seeds"] == pytest.approx(0.1)
    assert rows["distilled"]["deviation_between_seeds"] == pytest.approx(0, abs=1e-12)
    assert rows["hidden"]["difference"]["low"] < 0 < rows["hidden"]["difference"]["high"]
    assert script.table(result).row_count == 5


def test_the_runs_differ_in_teacher_and_seed_alone(script, tmp_path):
    size = script.Size(hidden_weight=0.5)
    labels, distilled, hidden = (script._recipe(tmp_path, size, row, 2) for row in script.ROWS)
    assert labels.teacher is None
    assert distilled.teacher == hidden.teacher == distilled.model == labels.model == str(tmp_path / "original")
    assert (distilled.distillation.hidden_weight, hidden.distillation.hidden_weight) == (0.0, 0.5)
    assert {each.seed for each in (labels, distilled, hidden)} == {2}
    assert len({each.output for each in (labels, distilled, hidden)}) == 3
    assert labels.reduction == distilled.reduction == hidden.reduction == script.REDUCTION


def test_a_process_does_its_share_and_says_what_is_left(script, tmp_path, monkeypatch):
    worked = []
    monkeypatch.setattr(script, "write_vqav2", lambda *given, **named: worked.append("world"))
    monkeypatch.setattr(
        script,
        "train",
        lambda recipe: worked.append(recipe.output.name) or dict.fromkeys(("steps", "seconds", "loss"), 0),
    )
    monkeypatch.setattr(script, "evaluate", lambda settings: right_up_to(tmp_path, settings.per_example.stem, 50))
    shared, quiet = tmp_path, Console(quiet=True)
    assert script.run(shared, script.Size(), [], [0], quiet) is None
    assert worked == ["world", "original"]
    assert script.run(shared, script.Size(), ["hidden"], [1], quiet) is None
    assert worked == ["world", "original", "hidden-1"]
    result = script.run(shared, script.Size(), list(script.ROWS), script.SEEDS, quiet)
    assert len(worked) == 2 + len(script.ROWS) * len(script.SEEDS) == len(set(worked))
    assert result["rows"]["hidden"]["accuracy"]["mean"] == 0.5
