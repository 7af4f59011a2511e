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
import os, pathlib, signal, sys, time
from pumer.cli import app
from pumer.evaluation import evaluate, ranking
calls = 0
def disturbed(original):
    def work(*arguments):
        global calls
        calls += 1
        if calls == 2 and os.environ["RANK"] == "0":
            pathlib.Path("waiting").touch()
            time.sleep(600)  # ended from outside
        while calls == 2:
            if pathlib.Path("waiting").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)
        return original(*arguments)
    return work
evaluate._choose, ranking._fill_block = disturbed(evaluate._choose), disturbed(ranking._fill_block)
app(sys.argv[1:])
"""
"""`pumer`: when both processes have done one piece of work, the second one is killed, and the first one hangs."""


def start(where, *command):
    """Run a program in two processes of one CPU thread each, in a folder."""
    return subprocess.run(
        [sys.executable, *TORCHRUN, *map(str, command)],
        cwd=where,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.fixture
def alone(monkeypatch):
    """Run commands in this process, on one CPU thread, in a new folder."""

    def run(where, *commands):
        where.mkdir(exist_ok=True)
        monkeypatch.chdir(where)
        for command in commands:
            app(command, standalone_mode=False)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield run
    torch.set_num_threads(threads)


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


@pytest.mark.slow
def test_two_processes_write_what_one_writes_also_after_kill_9(
    answering, ranking, varied, tmp_path, monkeypatch, alone
):
    pumer.save(DECODERS["llava"].model(), tmp_path / "llava")
    PROCESSORS["llava"]().save_pretrained(tmp_path / "llava")
    asked = ["image,question", *(f"{path.name},what is this?" for path in sorted((varied / "val2014").iterdir()))]
    (tmp_path / "asked.csv").write_text("\n".join(asked))
    generating = ["evaluate", str(tmp_path / "llava"), f"data.root={varied}", "batch_size=5", "max_new_tokens=3"]
    listed = ["predict", answering[1], "--questions", str(tmp_path / "asked.csv"), "--images", str(varied / "val2014")]
    kept = [answering, [*ranking, "scores=scores"]]
    commands = [
        [*answering, "workers=1"],
        [*ranking, "scores=scores"],
        [*generating, "output=generated.json", "per_example=written.json"],
        [*listed, "--out", "answers.csv", "batch_size=4"],
        ["predict", *answering[1:3], "split=val", "limit=3", "batch_size=5", "--out", "few.json"],  # one batch for two
        [*ranking[:-2], "galleries=2x9", "output=galleries.json"],
    ]
    (tmp_path / "killed.py").write_text(KILLED)
    (tmp_path / "commands.py").write_text(COMMANDS)
    one, two, fewer = (tmp_path / name for name in ("one", "two", "fewer"))
    two.mkdir()
    for command in kept:
        assert start(two, tmp_path / "killed.py", *command).returncode != 0
        (two / "waiting").unlink()
    assert not list(two.glob("*.json"))
    parts = two / ".output.json.parts"
    assert sum(file.read_text().count("\n") for file in parts.iterdir()) == 2  # of 6 batches
    assert np.isnan(np.load(two / SCORES)).sum() == 1000 - 2 * 8 * 8
    with next(parts.iterdir()).open("a") as file:
        file.write('[5, ["re')  # as a kill in the middle of a line leaves it
    shutil.copytree(two, fewer)

    done = start(two, tmp_path / "commands.py", json.dumps(commands))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("going on with the answers to 2 of 6 batches") == 1
    assert done.stdout.count("wrote output.json") == done.stdout.count("image retrieval, recall@10") / 2 == 1
    assert done.stdout.count("answers are in") == 2
    alone(one, *commands)
    names = same_files(two, one)
    assert {"output.json", "answers.csv", "written.json", "few.json", "found.json", SCORES} <= set(names)
    for name in ("per_example.json", "written.json"):
        assert len({entry["answer"] for entry in read_json(two / name)["examples"]}) > 2

    answered, choose = [], evaluate._choose
    monkeypatch.setattr(evaluate, "_choose", lambda *given: answered.append(1) or choose(*given))
    alone(fewer, *commands)
    assert len(answered) == 4 + 2 + 1  # the rest of the questions, the list, the few
    same_files(fewer, one)


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
    assert batches("rule=published") == 4  # the same answers, scored in another way
    model = pumer.load(answering[1])
    model.classifier[-1].bias.data += 1
    pumer.save(model, answering[1])
    assert batches() == 6
    with next((varied / "val2014").iterdir()).open("ab") as file:
        file.write(b"\0")
    assert batches() == 6


@pytest.mark.parametrize("whose", ["one", pytest.param("both", marks=pytest.mark.slow)])
def test_an_error_in_one_process_ends_both_in_one_line(whose, answering, varied, tmp_path):
    broken = sorted((varied / "val2014").iterdir())[-1]
    broken.write_bytes(b"no image")  # one process reads it
    changes, named = ([], broken.name) if whose == "one" else (["split=tset"], "tset")
    done = start(tmp_path, "-m", "pumer", *answering, *changes)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert named in line
    assert not list(tmp_path.glob("*.json"))
