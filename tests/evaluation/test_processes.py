"""Evaluating and predicting in two processes, as `torchrun` starts them: the files of one, also after a kill."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.decoders import DECODERS
from tiny.processors import PROCESSORS

import pumer
from pumer.checkpoint import load_processor
from pumer.cli import app
from pumer.evaluation import evaluate
from pumer.tasks import Flickr30k
from pumer.utils.files import read_json

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SCORES = "scores/scores.npy"
SECONDS = 120
"""No process may hang; a run takes a tenth of it."""

COMMANDS = """
import json, sys
from pumer.cli import app
for command in json.loads(sys.argv[1]):
    assert not app(command, standalone_mode=False)
"""
"""Several commands, one after the other."""

KILLED = """
import os, signal, sys, time
from pumer.cli import app
from pumer.evaluation import evaluate, ranking
calls = 0
def disturbed(original):
    def work(*arguments):
        global calls
        calls += 1
        if calls == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        if calls == 2:
            time.sleep(600)  # ended from outside
        return original(*arguments)
    return work
evaluate._choose, ranking._scorer = disturbed(evaluate._choose), disturbed(ranking._scorer)
app(sys.argv[1:])
"""
"""`pumer`: the second process is killed in its second piece of work, of which the first one does not get beyond one."""


def start(where, *command):
    """Run a program in a folder, on one thread per process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def lines(file):
    """The lines of a result file, without the two that differ between any two runs."""
    return [line for line in file.read_text().splitlines() if not line.startswith(('  "command":', '  "date":'))]


def same_files(ours, theirs):
    """Whether two folders hold the same files, byte for byte but for the lines above; returns their names."""
    names = sorted(path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file())
    assert sorted(path.relative_to(ours) for path in ours.rglob("*") if path.is_file()) == names
    for name in names:
        if name.suffix == ".json":
            assert lines(ours / name) == lines(theirs / name)
        else:
            assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    return list(map(str, names))


@pytest.fixture
def varied(tiny_vqa):
    """The tiny data with images that differ, so that answers do."""
    for number, path in enumerate(sorted((tiny_vqa / "val2014").iterdir())):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tiny_vqa


@pytest.fixture
def answering(tiny_vilt, tmp_path, varied):
    """Evaluation of 12 questions in 6 batches, by a reduced ViLT whose answers differ."""
    model = pumer.load(tiny_vilt)
    model.classifier[-1].weight.data.mul_(30)
    folder = tmp_path / "vilt"
    pumer.save(pumer.patch(model, pumer.PuMerConfig(layers=(2,), prune_ratio=0.2, merge_ratio=0.3)), folder)
    load_processor(tiny_vilt).save_pretrained(folder)
    files = [f"{name}={name}.json" for name in ("output", "per_example", "submission")]
    return ["evaluate", str(folder), f"data.root={varied}", "batch_size=2", *files]


@pytest.fixture
def ranking(tiny_meter, tmp_path):
    """Evaluation of 20 images with 50 captions, in 3 blocks of images and 7 of captions."""
    root, random = tmp_path / "captions", np.random.default_rng(0)
    (root / Flickr30k.images).mkdir(parents=True)
    entries, words = [], ["what", "colour", "is", "this", "it", "blue", "green", "red", "yes", "no"]
    for number in range(20):
        pixels = random.integers(256, size=(32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / Flickr30k.images / f"{number}.png")
        texts = [" ".join(random.choice(words, size=random.integers(2, 9))) for _ in range(2 + number % 2)]
        sentences = [{"raw": text, "sentid": 10 * number + index} for index, text in enumerate(texts)]
        entries.append({"filename": f"{number}.png", "imgid": number, "split": "test", "sentences": sentences})
    (root / Flickr30k.file).write_text(json.dumps({"images": entries}))
    folder = tmp_path / "meter"
    model = Flickr30k.model(str(tiny_meter), ())
    torch.manual_seed(1)
    model.rank_output.weight.data.normal_()
    pumer.save(pumer.patch(model, pumer.PuMerConfig(layers=(0, 2), prune_ratio=0.2)), folder)
    load_processor(tiny_meter).save_pretrained(folder)
    settings = ["task=flickr30k", f"data.root={root}", "split=test", "batch_size=8"]
    return ["evaluate", str(folder), *settings, "output=ranking.json", "submission=found.json"]


def test_two_processes_write_what_one_writes(answering, ranking, varied, tmp_path):
    pumer.save(DECODERS["llava"].model(), tmp_path / "llava")
    PROCESSORS["llava"]().save_pretrained(tmp_path / "llava")
    asked = ["image,question", *(f"{path.name},what is this?" for path in sorted((varied / "val2014").iterdir()))]
    (tmp_path / "asked.csv").write_text("\n".join(asked))
    generating = ["evaluate", str(tmp_path / "llava"), f"data.root={varied}", "batch_size=5", "max_new_tokens=3"]
    listed = ["predict", answering[1], "--questions", str(tmp_path / "asked.csv"), "--images", str(varied / "val2014")]
    commands = [
        [*answering, "workers=1"],
        [*generating, "output=generated.json", "per_example=written.json"],
        [*listed, "--out", "answers.csv", "batch_size=4"],
        ["predict", *answering[1:3], "split=val", "limit=3", "batch_size=5", "--out", "few.json"],  # one batch for two
        ranking,
        [*ranking[:-2], "galleries=2x9", "scores=scores", "--force"],
    ]
    given = [str(tmp_path / "commands.py"), json.dumps(commands)]
    (tmp_path / "commands.py").write_text(COMMANDS)
    for place, how in (("one", ()), ("two", TORCHRUN)):
        (tmp_path / place).mkdir()
        done = start(tmp_path / place, *how, *given)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote output.json") == done.stdout.count("image retrieval, recall@10") / 2 == 1
        assert done.stdout.count("answers are in") == 2
    names = same_files(tmp_path / "two", tmp_path / "one")
    assert {"output.json", "answers.csv", "written.json", "few.json", "found.json", SCORES} <= set(names)
    for name in ("per_example.json", "written.json"):
        assert len({entry["answer"] for entry in read_json(tmp_path / "two" / name)["examples"]}) > 2
    assert np.load(tmp_path / "two" / SCORES).shape == (18, 23)


def test_kill_9_of_one_and_again(answering, ranking, tmp_path, monkeypatch):
    commands, script = [answering, [*ranking, "scores=scores"]], tmp_path / "killed.py"
    script.write_text(KILLED)
    (tmp_path / "commands.py").write_text(COMMANDS)
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
    again = [tmp_path / "commands.py", json.dumps(commands)]
    assert start(tmp_path / "one", *again).returncode == 0
    for command in commands:
        killed = start(tmp_path / "two", *TORCHRUN, script, *command)
        assert killed.returncode != 0
        assert "error:" not in killed.stderr or killed.stderr.count("another process ended") == 1
    parts = tmp_path / "two" / ".output.json.parts"
    assert not list((tmp_path / "two").glob("*.json"))
    kept = [line for file in parts.iterdir() for line in file.read_text().splitlines()]
    assert len(kept) == 2  # of 6 batches
    assert np.isnan(np.load(tmp_path / "two" / SCORES)).mean() in (4 / 20, 12 / 20)  # of three blocks one or two are left
    next(parts.iterdir()).open("a").write('[5, ["re')  # as a kill in the middle of a line leaves it
    shutil.copytree(tmp_path / "two", tmp_path / "alone")

    done = start(tmp_path / "two", *TORCHRUN, *again)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("going on with the answers to 2 of 6 batches") == 1
    same_files(tmp_path / "two", tmp_path / "one")

    asked, choose = [], evaluate._choose
    monkeypatch.setattr(evaluate, "_choose", lambda *given: asked.append(1) or choose(*given))
    monkeypatch.chdir(tmp_path / "alone")
    app(answering, standalone_mode=False)
    assert len(asked) == 4
    for name in ("per_example.json", "submission.json"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert not (tmp_path / "alone" / parts.name).exists()


def test_answers_of_something_else_are_not_taken(answering, varied, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    choose, calls = evaluate._choose, []

    def interrupted(session, batch):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return choose(session, batch)

    def batches(*changes):
        """How many are answered when the run is started again."""
        calls[:] = [0] * 3
        shutil.rmtree(tmp_path / ".output.json.parts", ignore_errors=True)
        shutil.copytree(tmp_path / "kept", tmp_path / ".output.json.parts")
        app([*answering, "--force", *changes], standalone_mode=False)
        assert not (tmp_path / ".output.json.parts").exists()
        return len(calls) - 3

    monkeypatch.setattr(evaluate, "_choose", interrupted)
    app(answering, standalone_mode=False)
    (tmp_path / ".output.json.parts").rename(tmp_path / "kept")
    assert batches() == 4
    assert batches("reduction=none") == batches("text_length=6") == batches("blank=text") == 6
    assert batches("limit=10") == 5
    assert batches("batch_size=3") == 4
    assert batches("rule=published", "against=per_example.json", "output=again.json") == 6  # another result
    with next((varied / "val2014").iterdir()).open("ab") as file:
        file.write(b"\0")
    assert batches() == 6


def test_an_error_in_one_process_ends_both_in_one_line(answering, varied, tmp_path):
    broken = sorted((varied / "val2014").iterdir())[-1]
    broken.write_bytes(b"no image")  # which one process reads
    for command, about in ((answering, broken.name), ([*answering, "split=tset"], "tset")):
        done = start(tmp_path, *TORCHRUN, "-m", "pumer", *command)
        assert done.returncode != 0
        assert [line for line in done.stderr.splitlines() if line.startswith("error:") and about in line]
        assert done.stderr.count("error: ") - done.stderr.count("exitcode") <= done.stderr.count("error: ")
        assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
        assert not list(tmp_path.glob("*.json"))
