"""Every task of the built-in world with both small models, original and reduced, through the command line.

Per backbone and task: `pumer train` of the original's recipe and of the reduced model's, `pumer evaluate` of both and
of the reduced model without fine-tuning, `pumer predict` and `pumer score` of what was predicted, and the same training
with a grey image ("text only") and with empty sentences ("image only"), which shows what either input alone tells. In
retrieval that is left out: without one of the two there is nothing to rank by.

What is finished is kept: a run that was interrupted goes on where it was, and several processes may each do some of the
cells. Every run ends with the table of all cells that are complete and writes them to
`benchmarks/results/world-tasks.json`.

    pumer data world out/world
    python benchmarks/world_tasks.py --only vilt/nlvr2 vilt/snli_ve
    python benchmarks/world_tasks.py --collect
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pumer.checkpoint import read_json, write_json
from pumer.config import load
from pumer.provenance import collect
from pumer.stages import Stage, run_stages
from pumer.train_config import TrainConfig

ROOT = Path(__file__).parent.parent
ANNOTATIONS = {
    "vqav2": "v2_mscoco_val2014_annotations.json",
    "nlvr2": "test1.json",
    "snli_ve": "snli_ve_test.jsonl",
    "flickr30k": "dataset_flickr30k.json",
    "coco": "dataset_coco.json",
}
CELLS = tuple(f"{backbone}/{task}" for backbone in ("vilt", "meter") for task in ANNOTATIONS)
RETRIEVAL = ("flickr30k", "coco")
ORIGINAL, UNTUNED, REDUCED = "original", "pumer, not fine-tuned", "pumer"
BLANK = {"text only": "image", "image only": "text"}
WORK, DATA = Path("out/world-tasks"), Path("out/world")
SMOKE = ("train=60", "val=40", "test=40", "heldout=6")


@dataclass(frozen=True)
class Run:
    """Where and how.

    Attributes:
        work: models, answers and the steps' records.
        data: the world.
        settings: added to every training.
        galleries: of retrieval.
    """

    work: Path = WORK
    data: Path = DATA
    settings: tuple[str, ...] = ()
    galleries: str = "25x20"


def main() -> None:
    """Parse, run, collect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CELLS, default=CELLS, metavar="BACKBONE/TASK", help="these cells")
    parser.add_argument("--work", type=Path, default=WORK, help="models and answers")
    parser.add_argument("--data", type=Path, help=f"the world; by default {DATA}")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of every `pumer train`")
    parser.add_argument("--collect", action="store_true", help="run nothing")
    parser.add_argument("--smoke", action="store_true", help="two steps on a tiny world below --work: does it run?")
    parser.add_argument("--results", type=Path, help="by default benchmarks/results/world-tasks.json")
    arguments = parser.parse_args()
    console, work = Console(), arguments.work
    run = Run(work, arguments.data or DATA, tuple(arguments.set))
    results = arguments.results or ROOT / "benchmarks" / "results" / "world-tasks.json"
    if arguments.smoke:
        run = Run(work, arguments.data or work / "world", (*arguments.set, "max_steps=2"), "2x4")
        results = arguments.results or work / "world-tasks.json"
        if not (ROOT / run.data).is_dir():
            _pumer(["data", "world", str(run.data), *SMOKE])
    for cell in () if arguments.collect else arguments.only:
        console.rule(cell)
        run_stages(stages(cell, run), _records(cell, run), console)
    cells = {cell: found for cell in CELLS if (found := _collect(cell, run)) is not None}
    content = {"cells": cells, "provenance": collect(run)}
    text = json.dumps(content).replace(str(run.work), str(WORK)).replace(str(run.data), str(DATA))
    write_json(results, json.loads(text))
    console.print(table(cells))


def stages(cell: str, run: Run) -> list[Stage]:
    """The steps of a cell; those that others need come first."""
    backbone, task = cell.split("/")
    recipes = {kind: Path("recipes") / backbone / f"world-{task}-{kind}.yaml" for kind in (ORIGINAL, REDUCED)}
    folder = run.work / cell
    original = folder / ORIGINAL
    reduction = json.dumps(load(TrainConfig, ROOT / recipes[REDUCED]).reduction)
    steps = [_training(ORIGINAL, recipes[ORIGINAL], folder, task, run)]
    starts = [f"model={original}", f"teacher={original}"]
    steps += [_training(REDUCED, recipes[REDUCED], folder, task, run, *starts)]
    steps += [
        _test(ORIGINAL, original, folder, task, run),
        _test(UNTUNED, original, folder, task, run, f"reduction={reduction}"),
        _test(REDUCED, folder / REDUCED, folder, task, run),
    ]
    for kind in (ORIGINAL, REDUCED):
        steps += _predictions(kind, folder, task, run)
    for name, blank in () if task in RETRIEVAL else BLANK.items():
        steps += [_training(name, recipes[ORIGINAL], folder, task, run, f"blank={blank}")]
        steps += [_test(name, folder / _file(name), folder, task, run)]
    return steps


def _training(name: str, recipe: Path, folder: Path, task: str, run: Run, *settings: str) -> Stage:
    output = folder / _file(name)
    given = [f"output={output}", f"data.root={run.data / task}", "data.eval=null", "report_to=[]"]
    command = ["train", str(recipe), *given, *settings, *run.settings]
    after = [f"train {ORIGINAL}"] if name == REDUCED else []
    return Stage(f"train {name}", f"train: {name}", command, partial(_train, command, output), after, ROOT / output)


def _train(command: Sequence[str], output: Path) -> dict[str, Any]:
    _pumer(command)
    record = read_json(ROOT / output / "run.json")
    told = {name: record[name] for name in ("steps", "seconds", "samples_per_second", "loss")}
    return {"command": _line(command), **told}


def _test(name: str, model: Path, folder: Path, task: str, run: Run, *settings: str) -> Stage:
    """`pumer evaluate`, beside the original's answers."""
    file = _file(name)
    result, answers = folder / f"{file}.json", folder / f"{file}.answers.json"
    given = [f"output={result}", f"per_example={answers}", "data.train=null", *settings]
    given += [] if name == ORIGINAL else [f"against={folder / f'{ORIGINAL}.answers.json'}"]
    if task in RETRIEVAL:  # `pumer predict` ranks among all pictures, which takes 25 times as long
        given += [f"galleries={run.galleries}", f"submission={folder / f'{file}.predictions.json'}"]
    command = ["evaluate", str(model), f"split={_split(task)}", *given]
    after = [f"train {ORIGINAL if name == UNTUNED else name}"] + [f"test {ORIGINAL}"] * (name != ORIGINAL)
    return Stage(f"test {name}", f"test: {name}", command, partial(_evaluate, command, result), after)


def _evaluate(command: Sequence[str], result: Path) -> dict[str, Any]:
    seconds = _pumer(command)[0]
    told = read_json(ROOT / result)
    kept = {name: told[name] for name in ("questions", "accuracy", "figures", "reduction") if name in told}
    if "difference" in told:
        kept |= {name: told["difference"][name] for name in ("difference", "agreement")}
    where = {name: told[name] for name in ("date", "device", "threads", "dtype", "versions", "commit")}
    return {"command": _line(command), **kept, "seconds": round(seconds, 1), "provenance": where}


def _predictions(name: str, folder: Path, task: str, run: Run) -> list[Stage]:
    """`pumer predict`, and `pumer score` of its file."""
    file, needed, steps = folder / f"{name}.predictions.json", f"test {name}", []
    if task not in RETRIEVAL:
        command = ["predict", str(folder / name), f"split={_split(task)}", "--out", str(file)]
        needed = f"predict {name}"
        steps = [Stage(needed, f"predict: {name}", command, partial(_predict, command), [f"train {name}"])]
    annotations = run.data / task / ANNOTATIONS[task]
    command = ["score", task, "--annotations", str(annotations), "--predictions", str(file), "--json"]
    return [*steps, Stage(f"score {name}", f"score: {name}", command, partial(_score, command), [needed])]


def _predict(command: Sequence[str]) -> dict[str, Any]:
    return {"command": _line(command), "seconds": round(_pumer(command)[0], 1)}


def _score(command: Sequence[str]) -> dict[str, Any]:
    scored = json.loads(_pumer(command)[1])
    return {"command": _line(command), "questions": scored["questions"], "accuracy": scored["accuracy"]}


def _file(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def _split(task: str) -> str:
    """The split that figures are quoted on: VQAv2 has no public answers in its test split, nor has the world's."""
    return "val" if task == "vqav2" else "test"


def _pumer(command: Sequence[str]) -> tuple[float, str]:
    """Run a command from the repository's root: seconds and what it printed."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pumer", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return time.monotonic() - started, done.stdout


def _line(command: Sequence[str]) -> str:
    return shlex.join(["pumer", *command])


def _records(cell: str, run: Run) -> Path:
    return ROOT / run.work / cell / "steps"


def _collect(cell: str, run: Run) -> dict[str, Any] | None:
    """The result of a cell; None while a step of it is not done."""
    done: dict[str, dict[str, Any]] = {}
    for stage in stages(cell, run):
        record = _records(cell, run) / f"{stage.name}.json"
        content = read_json(record) if record.is_file() else {"done": False}
        if not content["done"]:
            return None
        done[stage.name] = content["result"]
    rows = {}
    for name in (ORIGINAL, REDUCED, UNTUNED, *BLANK):
        if f"test {name}" in done:
            test = dict(done[f"test {name}"])
            where = test.pop("provenance")
            rows[name] = {**test, "examples_per_second": round(test["questions"] / test["seconds"], 1)}
            rows[name] |= {"training": done[f"train {name}"]} if f"train {name}" in done else {}
    for name in (ORIGINAL, REDUCED):
        rows[name]["scored"] = done[f"score {name}"]
        if done[f"score {name}"]["accuracy"] != rows[name]["accuracy"]:
            raise SystemExit(f"{cell}: `pumer score` and `pumer evaluate` disagree about {name}")
    return {"split": _split(cell.split("/")[1]), "seeds": 1, "rows": rows, "provenance": where}


def table(cells: Mapping[str, Any]) -> Table:
    """Accuracy in percent; of retrieval recall@1 of texts and of images."""
    shown = Table(title="the built-in world, one seed; [95% interval over the test examples]")
    for heading in ("", "model", "accuracy %", "difference to original", "same answer %", "further"):
        shown.add_column(heading)
    for cell, found in cells.items():
        for name, row in found["rows"].items():
            further = [f"{key} {_percent(part)}" for key, part in row.get("figures", {}).items() if "@5" not in key]
            difference = _percent(row["difference"]) if "difference" in row else ""
            agreement = f"{100 * row['agreement']:.1f}" if "agreement" in row else ""
            first = f"{cell} ({row['questions']})" if name == ORIGINAL else ""
            shown.add_row(first, name, _percent(row["accuracy"]), difference, agreement, "\n".join(further))
        shown.add_section()
    return shown


def _percent(part: Mapping[str, float]) -> str:
    return f"{100 * part['mean']:.1f} [{100 * part['low']:.1f}, {100 * part['high']:.1f}]"


if __name__ == "__main__":
    main()
