"""Retrieval through the real command line: train, evaluate, go on after an interruption."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pumer
from pumer.checkpoint import load_processor
from pumer.cli import app
from pumer.evaluation import ranking
from pumer.tasks import Flickr30k
from pumer.training.trainer import DistillingTrainer

RECIPE = """
model: {model}
output: {output}
task: flickr30k
data: {{root: {root}, limit: 4, eval_limit: 4}}
reduction: {{method: pumer, layers: [0, 2], prune_ratio: 0.1, merge_ratio: 0.3, text_merge_ratio: 0.2}}
teacher: self
optimizer: {{lr: 1.0e-3}}
batch_size: 10
epochs: 2
report_to: []
"""


@pytest.fixture(params=["vilt", "meter"])
def recipe(request, tiny_vilt, tiny_meter, tiny_flickr, tmp_path):
    """Two epochs of two steps."""
    path = tmp_path / "recipe.yaml"
    model = {"vilt": tiny_vilt, "meter": tiny_meter}[request.param]
    path.write_text(RECIPE.format(model=model, output=tmp_path / "out", root=tiny_flickr))
    return path


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_train_then_evaluate(recipe, tmp_path):
    result = invoke("train", recipe)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert 0 <= record["accuracy"]["mean"] <= 1
    files = {name: tmp_path / f"{name}.json" for name in ("output", "per_example", "submission")}
    given = [f"{name}={path}" for name, path in files.items()]
    result = invoke("evaluate", tmp_path / "out", "split=test", f"scores={tmp_path / 'scores'}", *given)
    assert result.exit_code == 0, result.output
    assert "text retrieval, recall@10" in result.stdout
    content = {name: json.loads(path.read_text()) for name, path in files.items()}
    figures = content["output"]["figures"]
    assert [part["questions"] for part in figures.values()] == [8] * 3 + [40] * 3
    assert content["output"]["reduction"]["method"] == "pumer"
    entries = content["per_example"]["examples"]
    assert [entry["score"] for entry in entries] == [
        float(set(query.answers) >= {entry["answer"].split()[0]})
        for query, entry in zip(
            Flickr30k.queries(Flickr30k.read(recipe.parent / "flickr30k", "test")), entries, strict=True
        )
    ]
    assert len(content["submission"]) == 48
    table = np.load(tmp_path / "scores" / "scores.npy")
    assert table.shape == (8, 40)
    galleries = invoke("evaluate", tmp_path / "out", "split=test", "galleries=4x2", f"against={files['per_example']}")
    assert galleries.exit_code == 0, galleries.output
    assert "difference to" in galleries.stdout


def test_an_interrupted_run_draws_what_an_undisturbed_one_does(recipe, tmp_path, monkeypatch):
    assert invoke("train", recipe, f"output={tmp_path / 'undisturbed'}", "data.eval=null").exit_code == 0
    original, calls = DistillingTrainer.training_step, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DistillingTrainer, "training_step", interrupted)
    assert invoke("train", recipe, "data.eval=null").exit_code == 130
    assert invoke("train", recipe, "data.eval=null").exit_code == 0
    assert len(calls) == 4 + 2
    ours, theirs = (pumer.load(tmp_path / name).state_dict() for name in ("out", "undisturbed"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_every_epoch_shows_other_captions(recipe, monkeypatch):
    seen, draw = {}, Flickr30k.draw

    def remembered(self, examples, index, seed, epoch):
        drawn = draw(self, examples, index, seed, epoch)
        seen.setdefault(epoch, {})[index] = drawn.others
        return drawn

    monkeypatch.setattr(Flickr30k, "draw", remembered)
    assert invoke("train", recipe, "data.eval=null").exit_code == 0
    assert set(seen) == {0, 1}
    assert all(seen[0][index] != seen[1][index] for index in range(20))


def test_a_teacher_of_another_task_is_refused(recipe, tiny_vilt):
    result = invoke("train", recipe, f"teacher={tiny_vilt}")
    assert result.exit_code == 2
    assert "is a ViltForQuestionAnswering; task flickr30k needs a ViltForImageAndTextRetrieval" in result.stderr


KILLED = """
import os, signal, sys
from pumer.evaluation import ranking
from pumer.cli import app
fill, left = ranking._fill_block, 4
def killed(block, *how):
    global left
    left -= 1
    if left < 0:
        fill(block[:1], *how)  # in the middle of a block
        os.kill(os.getpid(), signal.SIGKILL)
    fill(block, *how)
ranking._fill_block = killed
app(["evaluate", *sys.argv[1:]])
"""


def test_kill_9_and_again(tiny_meter, tiny_flickr, tmp_path, monkeypatch):
    model = Flickr30k.model(str(tiny_meter), ())
    model.rank_output.weight.data.normal_()
    pumer.save(pumer.patch(model, pumer.PuMerConfig(layers=(0, 2), prune_ratio=0.2)), tmp_path / "model")
    load_processor(tiny_meter).save_pretrained(tmp_path / "model")
    given = [tmp_path / "model", "task=flickr30k", f"data.root={tiny_flickr}", "split=test", "batch_size=8"]
    assert invoke("evaluate", *given, f"output={tmp_path / 'whole.json'}", "galleries=2x4").exit_code == 0
    given += ["galleries=2x4", f"scores={tmp_path / 'scores'}", f"output={tmp_path / 'again.json'}"]
    command = [sys.executable, "-c", KILLED, *map(str, given)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "again.json").exists()
    left = int(np.isnan(np.load(tmp_path / "scores" / "scores.npy")).sum())
    assert 0 < left < 8 * 20
    computed, fill = [], ranking._fill_block
    monkeypatch.setattr(ranking, "_fill_block", lambda block, *how: computed.append(fill(block, *how)))
    assert invoke("evaluate", *given).exit_code == 0
    whole, again = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "again"))
    assert again["figures"] == whole["figures"]
    assert again["accuracy"] == whole["accuracy"]
    blocks = 2 * 3  # two galleries of 4 images and 20 captions
    assert len(computed) == blocks - 4
