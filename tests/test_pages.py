"""Every block of code in README.md and docs/ runs as it stands, or gives the reason beside it why not.

The blocks of a page run one after the other, as for a reader who follows it: in one folder, those of Python in one
namespace. In the folder lie small models under the names that the pages use, so that nothing is downloaded, and small
data sets. A block `text` after a block that runs is what that prints, up to a line of three dots.
"""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny.commands import every_command
from tiny.decoders import DECODERS
from tiny.processors import PROCESSORS
from typer.testing import CliRunner

import pumer
from pumer.checkpoint import load_processor
from pumer.cli import app
from pumer.models.meter import MeterConfig, MeterForQuestionAnswering
from pumer.tasks import TASKS
from pumer.utils.shipped import SMALL

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?:<!-- not run: ([^>]+) -->\n+)?```(\w*)\n(.*?)```\n", re.DOTALL)
PAGES = {file.name: BLOCK.findall(file.read_text("utf-8")) for file in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
PAGES = {name: blocks for name, blocks in sorted(PAGES.items()) if any(kind != "text" for _, kind, _ in blocks)}

QUICK = ("list", "info", "plan", "visualize", "evaluate", "predict", "score", "data")
"""Commands that run in the quick tests too; of the others these check arguments, settings and places."""
PROGRAMS = ("export.md",)
"""Pages about exported programs: the quick tests check commands, the slow ones run them, and the Python between."""
ELSEWHERE = ("demo", "serve", "app", "convert")
"""Commands that run in tests of their own alone."""
CLUSTERED = ("--questions shards", "--questions archives", "--question ", "--galleries")
"""Arguments of `predict` on a cluster, which tests/serving starts, and of `score` with more images than there are."""
SMALLER = {
    "train": "output=out/trained max_steps=1 batch_size=2 workers=0 data.min_answer_count=1 report_to=[]",
    "benchmark": "pairs=1 batch_sizes=[1] memory_batch=0 new_tokens=2 progress=false",
    "tune": "trials=2 examples=8 pairs=1 timed_batch=1",
    "export": "--calibration-examples 4",
    "data world": "train=25 val=25 test=25 heldout=6",
}
"""Settings that make a command short."""


class Accepted(Exception):
    """A command that has checked what it was given, and would begin."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder that pages are followed in: models, data and images."""
    folder = tmp_path_factory.mktemp("pages")
    pumer_config = pumer.PuMerConfig(layers=(2, 5, 8), prune_ratio=0.1, merge_ratio=0.3, text_merge_ratio=0.2)
    vilt, meter = SMALL["small:vilt"], SMALL["small:meter"]
    for name in ("dandelin/vilt-b32-finetuned-vqa", "dandelin/vilt-b32-mlm"):
        shutil.copytree(vilt, folder / name)
    for task, sizes in {"vqav2": (24, 12, 6), "flickr30k": (5, 5, 25)}.items():
        sizes = [f"{name}={size}" for name, size in zip(("train", "val", "test"), sizes, strict=True)]
        written = CliRunner().invoke(app, ["data", "world", str(folder / "data"), f"tasks=[{task}]", *sizes])
        assert written.exit_code == 0, written.output
    trained(folder, vilt, "vqav2", None, "out/vilt/vqav2-original", "out/vqav2-original")
    trained(folder, vilt, "vqav2", pumer_config, "out/vilt/vqav2-pumer", "out/vqav2-pumer")
    trained(folder, vilt, "flickr30k", pumer_config, "out/vilt/flickr30k-pumer")
    trained(folder, meter, "vqav2", None, "out/meter/vqav2")
    config = MeterConfig.from_pretrained(meter)
    config.num_cross_modal_pairs, config.vision_config.num_hidden_layers = 6, 11  # as the presets have it
    MeterForQuestionAnswering(config).save_pretrained(folder / "out/meter")
    load_processor(meter).save_pretrained(folder / "out/meter")
    generative(folder / "llava-hf/llava-1.5-7b-hf", "llava")
    generative(folder / "Qwen/Qwen2.5-VL-3B-Instruct", "qwen2_5_vl")
    generative(folder / "out/llava-pumer", "llava", pumer.FastVConfig(layers=(1,), prune_ratio=0.5))
    questions = folder / "data/vqav2/v2_OpenEnded_mscoco_test2015_questions.json"
    shutil.copy(questions, str(questions).replace("test2015", "test-dev2015"))
    shutil.copytree(ROOT / "docs/images", folder / "docs/images")
    for number, name in enumerate(("photo.jpg", "cat.jpg", "dog.jpg", "photographs/photo.jpg")):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.effect_noise((96, 96), 90 + number).convert("RGB").save(folder / name)
    (folder / "questions.csv").write_text("image,question\nphoto.jpg,what color is the small triangle?\n")
    for name in ("shards/1.parquet", "archives/1.tar"):
        (folder / name).parent.mkdir()
        (folder / name).write_text("")
    annotations = folder / "data/vqav2/v2_mscoco_val2014_annotations.json"
    (folder / "A.json").symlink_to(annotations)
    answers = json.loads(annotations.read_text())["annotations"]
    answers = [{"question_id": each["question_id"], "answer": each["multiple_choice_answer"]} for each in answers]
    (folder / "P.json").write_text(json.dumps(answers))
    (folder / "dataset_flickr30k.json").symlink_to(folder / "data/flickr30k/dataset_flickr30k.json")
    return folder


def trained(folder, start, task, config, *names):
    """A small model under each name, with the record of a training on the task's data."""
    labels = TASKS[task].vocabulary(folder / f"data/{task}", minimum=1)
    model = TASKS[task].model(str(start), labels)
    if config is not None:
        pumer.patch(model, config)
    for name in names:
        pumer.save(model, folder / name)
        load_processor(start).save_pretrained(folder / name)
        record = {"config": {"task": task, "data": {"root": f"data/{task}"}}}
        (folder / name / "run.json").write_text(json.dumps(record))


def generative(folder, family, config=None):
    """A tiny generative model with its processor."""
    model = DECODERS[family].model()
    pumer.save(model if config is None else pumer.patch(model, config), folder)
    PROCESSORS[family]().save_pretrained(folder)


def commands(block):
    """The commands of a block for a shell, each as words."""
    lines = block.replace("\\\n", " ").replace("=/data/", "=data/").replace(" /data/", " data/").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def job(words):
    """The arguments of pumer in a command: torchrun's processes are one here."""
    if words[0] == "torchrun":
        words = words[words.index("-m") + 1 :]
    assert words[0] == "pumer", f"`{' '.join(words)}` needs `<!-- not run: REASON -->` above its block"
    return words[1:]


def follow(page, whole, monkeypatch):
    """Run the blocks of a page, the slow ones only if all are to run."""
    names, printed = {}, None
    for reason, kind, block in PAGES[page]:
        if kind == "python" and not reason and (whole or page not in PROGRAMS):
            with torch.no_grad():
                printed = python(page, block, names)
        elif kind == "sh" and not reason:
            parts = [shell(page, job(words), whole, monkeypatch) for words in commands(block)]
            printed = None if None in parts else "".join(parts)
        elif kind == "text" and printed is not None:
            shown = [line.rstrip() for line in block.split("...\n")[0].splitlines()]
            assert [line.rstrip() for line in printed.splitlines()][: len(shown)] == shown
            printed = None


def python(page, block, names):
    lines = []
    names["print"] = lambda *values: lines.append(" ".join(map(str, values)))
    exec(compile(block, page, "exec"), names)
    return "\n".join(lines)


def shell(page, arguments, whole, monkeypatch):
    """What a command prints on stdout; None where it is only checked."""
    line, kind = " ".join(arguments), arguments[0]
    runs = kind not in ELSEWHERE and (whole or (kind in QUICK and page not in PROGRAMS))
    runs = runs and not (kind in ("predict", "score") and any(each in line for each in CLUSTERED))
    with monkeypatch.context() as patched:
        if runs:
            arguments = arguments + next((SMALLER[each] for each in SMALLER if line.startswith(each)), "").split()
        else:
            for module in ("answering", "data", "deploying", "measuring", "training"):
                patched.setattr(f"pumer.cli.{module}.run_job", accept)
        result = CliRunner().invoke(app, arguments)
    if runs:
        assert result.exit_code == 0, f"{line}: {result.output}"
        return result.stdout
    assert isinstance(result.exception, Accepted), f"{line}: {result.output}"
    if kind in ("export", "tune"):  # what they would have written, for commands that read it
        shutil.copytree(arguments[1], arguments[2], dirs_exist_ok=True)
        (Path(arguments[2]) / ("export.json" if kind == "export" else "reduction.json")).write_text(
            "{}" if kind == "export" else '{"method": "none"}'
        )
    return None


def accept(*arguments, **options):
    raise Accepted


@pytest.fixture
def followed(prepared, tmp_path, monkeypatch):
    """A copy of the folder, as the current one."""
    shutil.copytree(prepared, tmp_path / "folder", symlinks=True, copy_function=os.link)
    monkeypatch.chdir(tmp_path / "folder")


SLOW = [pytest.param(page, True, id=f"{page}-whole", marks=pytest.mark.slow) for page in PAGES]


@pytest.mark.parametrize(("page", "whole"), [*((page, False) for page in PAGES), *SLOW])
def test_blocks_run(page, whole, followed, monkeypatch):
    follow(page, whole, monkeypatch)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", every_command())
def test_examples_of_a_command_run_and_print_nothing_but_json(name, whole, followed, monkeypatch):
    Path("meter_clip16_288_roberta_vqa.ckpt").write_text("x")
    Path("out/scores").mkdir()
    Path("out/scores/scores.npy").write_text("x")
    examples = every_command()[name].examples
    assert len(examples) == 2 and all(example.startswith(f"pumer {name}") for example in examples)
    for example in examples:
        (words,) = commands(example)
        printed = shell("a command", [*job(words), "--json"], whole, monkeypatch)
        assert printed is None or json.loads(printed)


def test_every_block_has_its_language():
    assert {kind for blocks in PAGES.values() for _, kind, _ in blocks} == {"python", "sh", "text"}


def test_few_blocks_are_not_run():
    """A new reason is a decision: it is counted here."""
    reasons = [reason for blocks in PAGES.values() for reason, _, _ in blocks if reason]
    assert len(reasons) == 8 and all(len(reason.split()) > 2 for reason in reasons)
    assert sum(len(blocks) for blocks in PAGES.values()) > 40
