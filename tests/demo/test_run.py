import dataclasses
import io
import json

import pytest
import torch
from rich.console import Console
from transformers import ViltForQuestionAnswering

from benchmarks.pretrain_small.small import small_processor, small_vilt
from pumer.checkpoint import load
from pumer.demo import run as demo
from pumer.patching import reduction
from pumer.profiling import benchmark, peak_memory
from pumer.settings.demo import DemoConfig
from pumer.utils.errors import InputError
from pumer.world import QuestionsConfig


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A demo of seconds: two layers with random weights, a handful of images, a few steps."""
    folder = tmp_path_factory.mktemp("demo")
    torch.manual_seed(0)
    model = small_vilt(layers=2)
    model.initializer_range = 0.2
    ViltForQuestionAnswering(model).save_pretrained(folder / "start")
    small_processor().save_pretrained(folder / "start")
    return DemoConfig(
        output=folder / "out",
        model=str(folder / "start"),
        world=QuestionsConfig(train=120, val=120, heldout=12),
        reduction={
            "method": "pumer",
            "layers": [0, 1],
            "prune_ratio": 0.1,
            "merge_ratio": 0.3,
            "text_merge_ratio": 0.2,
        },
        questions=60,
        batch_size=60,
        pairs=2,
        largest_batch=8,
    )


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "exported"])
def exports(request):
    """Whether there is a runtime to export to: it starts threads in this process, and other tests fork."""
    return request.param


@pytest.fixture(scope="module")
def outcome(config, exports):
    """The results and what was printed."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patched:
        if not exports:
            patched.setattr(demo, "find_spec", lambda name: None)
        patched.setattr(benchmark, "peak_memory", peak_memory.measure)  # here: processes of its own take long to start
        return demo.run(config, Console(file=output, width=100)), output.getvalue()


def test_all_models_stand_in_the_table(outcome, exports):
    results, _ = outcome
    names = [row["name"] for row in results["rows"]]
    assert names == [
        "original",
        "reduced, not fine-tuned",
        "reduced, distilled",
        *["reduced, exported"] * exports,
        "text only",
        "image only",
        "best constant per template",
    ]
    assert results["questions"] == 120
    for row in results["rows"]:
        assert 0 <= row["accuracy"]["low"] <= row["accuracy"]["mean"] <= row["accuracy"]["high"] <= 1
        assert sum(entry["questions"] for entry in row["by_type"].values()) == 120
    original, untuned, reduced, *others = results["rows"]
    assert "difference" not in original
    for row in (untuned, reduced, *others):
        difference = row["accuracy"]["mean"] - original["accuracy"]["mean"]
        assert row["difference"]["mean"] == pytest.approx(difference)
    assert {"unseen pairs"} == set(original["splits"]) == set(untuned["splits"]) == set(reduced["splits"])


def test_cost_is_measured_for_the_original_and_the_reduced_model(outcome, config):
    results, _ = outcome
    rows = {row["name"]: row for row in results["rows"]}
    original, reduced = rows["original"], rows["reduced, distilled"]
    assert reduced["macs"] < original["macs"]
    for row in (original, reduced):
        assert {entry["batch"] for entry in row["speed"]} == {1, 8}
        assert all(entry["images_per_second"] > 0 for entry in row["speed"])
        assert row["memory"] > 0
    assert all(entry["speedup"]["low"] <= entry["speedup"]["median"] for entry in reduced["speed"])
    assert "speed" not in rows["text only"]
    assert [image for _, _, image in results["tokens"]["original"]] == [145, 145]
    assert [image for _, _, image in results["tokens"]["reduced, distilled"]] == [87, 52]


def test_models_are_what_the_table_says(outcome, config):
    models = config.output / "models"
    assert reduction(load(models / "original")).method == "none"
    assert [step.layer for step in reduction(load(models / "reduced")).schedule] == [0, 1]
    record = json.loads((models / "reduced" / "run.json").read_text())["config"]
    assert record["teacher"] == str(models / "original")
    blanks = {
        name: json.loads((models / name / "run.json").read_text())["config"]["blank"]
        for name in ("text-only", "image-only")
    }
    assert blanks == {"text-only": "image", "image-only": "text"}


def test_report_and_images_are_written(outcome, config):
    results, printed = outcome
    assert json.loads((config.output / "results.json").read_text()) == json.loads(json.dumps(results))
    page = (config.output / "report.html").read_text()
    examples = demo.TASK.read(config.output / "data", "val")
    types = {example.groups["question_type"] for example in examples}
    assert len(types) > 5
    assert len(results["examples"]) in (len(types), len(types) + 1)
    assert page.count("data:image/png;base64,") == len(results["examples"])
    assert printed.strip().endswith("report.html")


def test_a_second_run_does_nothing_again(outcome, config, exports, capsys, monkeypatch):
    output = io.StringIO()
    if not exports:
        monkeypatch.setattr(demo, "find_spec", lambda name: None)
    again = demo.run(config, Console(file=output, width=100))
    assert again["rows"] == outcome[0]["rows"]
    assert capsys.readouterr().err.count("done before") == len(list((config.output / "stages").iterdir()))


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path, config):
    missing = dataclasses.replace(config, output=tmp_path / "out", model=str(tmp_path / "none"))
    with pytest.raises(InputError, match="none"):
        demo.run(missing, Console(file=io.StringIO()))
