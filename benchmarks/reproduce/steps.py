"""From cells to what must be run: train, evaluate beside the original, predict, score, benchmark."""

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.reproduce.cells import RETRIEVAL, Cell
from benchmarks.reproduce.setup import ORIGINAL, PUMER, RULE, Setup, pumer_cell, read_recipe
from benchmarks.reproduce.tables import Table
from pumer.checkpoint import load, load_processor, trained_with
from pumer.demo.stages import Stage
from pumer.profiling.named_models import PAPER_TEXT_LENGTH, PREFIX
from pumer.profiling.planning import run as run_plan
from pumer.reducers import PuMerConfig, config_to_dict
from pumer.settings.plan import PlanConfig
from pumer.tasks import TASKS
from pumer.tasks.loading import text_length_of
from pumer.utils.config import to_dict
from pumer.utils.errors import InputError
from pumer.utils.files import read_json
from pumer.utils.shipped import located

WORLD = {
    "vqav2": ("test=0", "heldout=0"),
    "nlvr2": (),
    "snli_ve": (),
    "flickr30k": ("test=5000",),
    "coco": ("test=5000",),
}
"""What the world's defaults lack of 5,000 test examples, or have beyond need."""
SMOKE = ("train=60", "val=40", "test=40", "heldout=6")
_WHERE = ("date", "device", "threads", "dtype", "versions", "commit")
_OWN_LOSSES = {"dynamicvit": ["distillation.hidden_weight=0.5"]}
"""What a method's own paper trains with beside the recipe: DynamicViT's tokens imitate its teacher's."""
_MADE_HERE = ("model", "output", "teacher")


def steps(tables: Iterable[Table], setup: Setup) -> list[Stage]:
    """All steps of some tables, each once; those that others need come first."""
    of_cell = {"cells": _of_cell, "training": _trainings, "macs": _macs}
    found: dict[str, Stage] = {}
    for table in tables:
        for cell in table.cells:
            for step in of_cell[table.kind](cell, setup):
                found.setdefault(step.name, step)
    return list(found.values())


def train_step(cell: Cell) -> str:
    """Name of the step that trains a cell's weights."""
    return f"train/{cell.weights.name}"


def test_step(cell: Cell) -> str:
    """Name of the step that tests a cell."""
    return f"test/{cell.name}"


def benchmark_step(cell: Cell) -> str:
    """Name of the step that measures a cell's speed and memory."""
    return f"benchmark/{cell.architecture.name}"


def macs_step(cell: Cell) -> str:
    """Name of the step that counts the multiply-accumulates of full-size models."""
    return f"macs/{cell.backbone}/{cell.task}"


def _macs(cell: Cell, setup: Setup) -> list[Stage]:
    """Original and PuMer, as in the paper's Table 7; nothing is run."""
    preset = {"vilt": "vilt-b32", "meter": "meter-b16"}[cell.backbone] + "-nlvr2" * (cell.task == "nlvr2")
    config = PlanConfig(
        model=f"{PREFIX}{preset}",
        reduction=config_to_dict(PuMerConfig.preset(cell.backbone, cell.task)),
        image_size=384,
        text_length=PAPER_TEXT_LENGTH,
    )

    def work() -> dict[str, int]:
        planned = run_plan(config)
        return {"original": planned.macs_unreduced, "pumer": planned.macs}

    return [Stage(macs_step(cell), f"count {cell.backbone}/{cell.task}", to_dict(config), work)]


def _of_cell(cell: Cell, setup: Setup) -> list[Stage]:
    found = [] if cell == cell.original else _of_cell(cell.original, setup)
    found += _trainings(cell, setup) if cell.tuned else []
    found += [_test(cell, setup), _score(cell, setup)]
    if _has_a_recipe(cell, setup) and cell.seed == 0 and cell.task not in RETRIEVAL:
        found.append(_prediction(cell, setup))
    if cell.blank == "none" and cell != cell.original:
        first = cell.architecture
        found += [] if first.original == cell.original else _of_cell(first.original, setup)
        found.append(_benchmark(first, setup))
    return found


def _trainings(cell: Cell, setup: Setup) -> list[Stage]:
    """What makes a cell's weights, from the data on."""
    before = [] if cell == cell.base else _trainings(cell.base, setup)
    return [*_world(cell.task, setup), *before, _training(cell, setup)]


def _has_a_recipe(cell: Cell, setup: Setup) -> bool:
    return cell in (cell.original, pumer_cell(setup, cell.backbone, cell.task, cell.seed))


def _world(task: str, setup: Setup) -> list[Stage]:
    """Write the data of a task, where none is given."""
    if setup.data is not None:
        return []
    command = ["data", "world", str(setup.out / "world"), f"tasks=[{task}]", *(SMOKE if setup.tiny else WORLD[task])]
    name = f"world/{task}"

    def work() -> dict[str, Any]:
        setup.run(name, command)
        return {"command": line(command)}

    return [Stage(name, f"write {task}", command[3:], work)]


def _after_world(task: str, setup: Setup) -> list[str]:
    return [] if setup.data is not None else [f"world/{task}"]


def _training(cell: Cell, setup: Setup) -> Stage:
    """A recipe, and what the cell changes in it; nothing to do for a model that was given."""
    given_model = setup.given(cell)
    if given_model is not None:
        digest, after = digest_of_weights(given_model), _after_world(cell.task, setup)
        return Stage(train_step(cell), f"take {cell.name}", digest, lambda: {}, after)
    kind = ORIGINAL if cell.reduction is None and cell.image_size is None else PUMER
    name = setup.recipe(cell.backbone, cell.task, kind)
    recipe, output, teacher = read_recipe(name), Path(setup.weights(cell)), setup.weights(cell.base)
    start = _start(cell, setup, recipe)
    given = [f"seed={cell.seed}", "report_to=[]"]
    stops_early = "patience" in recipe and recipe["data"]["eval"] != _split(cell.task)  # which it must not be tested on
    given += [] if stops_early else ["data.eval=null"] + ["patience=null"] * ("patience" in recipe)
    if kind == PUMER:
        given += [f"reduction={cell.reduction or 'none'}"]
        given += _OWN_LOSSES.get((cell.settings or {}).get("method", ""), []) if cell.teacher else ["teacher=null"]
    given += [f"image_size={cell.image_size}"] * (cell.image_size is not None)
    given += [f"blank={cell.blank}"] * (cell.blank != "none")
    given += setup.settings
    places = [f"model={start or teacher}", f"output={output}", f"data.root={setup.data_of(cell.task)}"]
    places += [f"teacher={teacher}"] * (kind == PUMER and cell.teacher)
    command, step = ["train", str(name), *places, *given], train_step(cell)
    settings = {
        "recipe": _plain(recipe),
        "given": given,
        "start": start and digest_of_weights(start),
        "data": _digest_of_data(cell.task, setup),
    }
    after = _after_world(cell.task, setup) + [train_step(cell.base)] * (kind == PUMER)
    return Stage(step, f"train {cell.name}", settings, partial(_train, setup, step, command, output), after, output)


def _start(cell: Cell, setup: Setup, recipe: Mapping[str, Any]) -> str | None:
    """The checkpoint that a training starts from; None for the fine-tuned original, its teacher."""
    if "teacher" in recipe and recipe["model"] == recipe["teacher"]:
        return None
    shipped = f"small:{cell.backbone}" if setup.scale == "world" else str(recipe["model"])
    return setup.starts.get(cell.backbone, shipped)


def _plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without its places."""
    data = {name: value for name, value in recipe["data"].items() if name != "root"}
    return {**{name: value for name, value in recipe.items() if name not in _MADE_HERE}, "data": data}


def _train(setup: Setup, name: str, command: Sequence[str], output: Path) -> dict[str, Any]:
    setup.run(name, command)
    record = read_json(output / "run.json")
    told = {key: record[key] for key in ("steps", "resumed_from", "seconds", "samples_per_second", "loss")}
    return {"command": line(command), **told, "provenance": {key: record[key] for key in _WHERE}}


def _test(cell: Cell, setup: Setup) -> Stage:
    """`pumer evaluate`, beside the original's answers."""
    result = setup.file(cell, "result")
    given = [f"split={_split(cell.task)}", "data.train=null"]
    if not cell.tuned:
        given += [f"reduction={cell.reduction}"] * (cell.reduction is not None)
        given += [f"image_size={cell.image_size}"] * (cell.image_size is not None)
    if cell.task in RETRIEVAL and setup.galleries:
        given += [f"galleries={setup.galleries}"]
    given += [f"rule={RULE}"] * (cell.task == "vqav2")
    places = [f"data.root={setup.data_of(cell.task)}", f"output={result}"]
    places += [f"per_example={setup.file(cell, 'answers')}", f"submission={setup.file(cell, 'submission')}"]
    places += [f"against={setup.file(cell.original, 'answers')}"] * (cell != cell.original)
    command = ["evaluate", setup.weights(cell), *places, *given]
    name, after = test_step(cell), [train_step(cell)] + [test_step(cell.original)] * (cell != cell.original)
    settings = {"given": given, "data": _digest_of_data(cell.task, setup)}
    return Stage(name, f"test {cell.name}", settings, partial(_evaluate, setup, name, command, result), after)


def _evaluate(setup: Setup, name: str, command: Sequence[str], result: Path) -> dict[str, Any]:
    setup.run(name, command)
    told = read_json(result)
    kept = {key: told[key] for key in ("questions", "rule", "accuracy", "figures", "reduction") if key in told}
    return {"command": line(command), **kept, "provenance": {key: told[key] for key in _WHERE}}


def _score(cell: Cell, setup: Setup) -> Stage:
    """`pumer score` of what was written; it must find the accuracy of `pumer evaluate`."""
    task, name = cell.task, f"score/{cell.name}"

    def work() -> dict[str, Any]:
        files = TASKS[task].annotation_files(setup.data_of(task), _split(task))
        annotations = files[task == "vqav2"]  # its first file has the questions alone
        command = ["score", task, "--annotations", str(annotations), "--json"]
        command += ["--predictions", str(setup.file(cell, "submission"))]
        if task in RETRIEVAL and setup.galleries:
            command += ["--galleries", setup.galleries]
        scored, expected = json.loads(setup.run(name, command)), read_json(setup.file(cell, "result"))
        if scored["accuracy"] != expected["accuracy"]:
            raise InputError(f"`pumer score` finds {scored['accuracy']}, `pumer evaluate` {expected['accuracy']}")
        return {"command": line(command), "accuracy": scored["accuracy"]}

    return Stage(name, f"score {cell.name}", None, work, [test_step(cell)])


def _prediction(cell: Cell, setup: Setup) -> Stage:
    """`pumer predict`, which must answer as `pumer evaluate` did."""
    name, file = f"predict/{cell.name}", setup.file(cell, "predictions")
    places = [f"data.root={setup.data_of(cell.task)}", "--out", str(file)]
    command = ["predict", setup.weights(cell), f"split={_split(cell.task)}", *places]

    def work() -> dict[str, Any]:
        setup.run(name, command)
        if file.read_bytes() != setup.file(cell, "submission").read_bytes():
            raise InputError(f"{file} differs from what `pumer evaluate` wrote")
        return {"command": line(command)}

    return Stage(name, f"predict {cell.name}", _split(cell.task), work, [test_step(cell)])


def _benchmark(cell: Cell, setup: Setup) -> Stage:
    """Speed, memory and arithmetic beside the unreduced original."""
    name, result = benchmark_step(cell), setup.file(cell, "benchmark")
    changed = cell.settings or {"method": "none"}
    changed |= {"image_size": cell.image_size} if cell.image_size is not None else {}
    given = [f"reductions={json.dumps({'reduced': changed})}", "transformers=false", "progress=false"]
    given += [f"batch_sizes=[{setup.batch}]", f"memory_batch={setup.batch}", f"pairs={setup.pairs}"]

    def work() -> dict[str, Any]:
        words = [f"text_length={_longest_text(cell, setup)}"]
        command = ["benchmark", setup.weights(cell), f"output={result}", *words, *given]
        setup.run(name, command, alone=True)
        told = read_json(result)
        return {"command": line(command), "provenance": {key: told["provenance"][key] for key in _WHERE}}

    settings = {"given": given, "words": "as many as the longest text of the test split"}
    return Stage(name, f"benchmark {cell.name}", settings, work, [train_step(cell)], alone=True)


def _longest_text(cell: Cell, setup: Setup) -> int:
    """Words of the longest text of a test, as the model sees it; special tokens counted."""
    weights = setup.weights(cell)
    most = text_length_of(load(weights).config, trained_with(weights).get("text_length"))
    texts = [example.text for example in TASKS[cell.task].read(setup.data_of(cell.task), _split(cell.task))]
    return min(most, max(map(len, load_processor(weights).tokenizer(texts).input_ids)))


def _split(task: str) -> str:
    """The split that results are quoted on: VQAv2 has no public answers in its test split, nor has the world's."""
    return "val" if task == "vqav2" else "test"


def digest_of_weights(checkpoint: str) -> str:
    """A digest of the weights of a folder; the name itself of a checkpoint that is no folder."""
    files = sorted(Path(located(checkpoint)).glob("*.safetensors"))
    return _digest(files) if files else checkpoint


def _digest_of_data(task: str, setup: Setup) -> str | None:
    """A digest of the annotations of a given data folder; None for the world written here."""
    if setup.data is None:
        return None
    root = setup.data_of(task)
    if not root.is_dir():
        raise InputError(f"data folder {root} does not exist; --data must hold one folder per task")
    files = {file for split in ("train", _split(task)) for file in TASKS[task].annotation_files(root, split)}
    return _digest(sorted(file for file in files if file.is_file()))


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\n".encode())
        digest.update(_digest_of_file(file, file.stat().st_size, file.stat().st_mtime_ns))
    return digest.hexdigest()[:16]


@cache
def _digest_of_file(file: Path, size: int, changed: int) -> bytes:
    """Of what it holds; read once as long as size and time of change stay."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def line(command: Sequence[str]) -> str:
    """A command as typed."""
    return shlex.join(["pumer", *command])
