"""The whole comparison from one command, on the built-in world: fine-tune, reduce, distil, evaluate, time, report."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from pumer.checkpoint import load, load_processor
from pumer.demo import report
from pumer.demo.stages import Stage, run_stages
from pumer.evaluation.evaluate import labels_of
from pumer.evaluation.evaluate import run as evaluate
from pumer.evaluation.scoring import compare, constant_per_template, summarise
from pumer.profiling.benchmark import run as benchmark
from pumer.profiling.inputs import inputs_for
from pumer.profiling.named_models import variant
from pumer.profiling.timing import fastest_batch
from pumer.reducers import NoReduction
from pumer.settings.benchmark import BenchmarkConfig
from pumer.settings.demo import DemoConfig
from pumer.settings.evaluate import EvaluateConfig, EvaluationData
from pumer.settings.train import TrainConfig, TrainingData
from pumer.tasks import TASKS, Example
from pumer.tasks.loading import make_inputs, text_length_of
from pumer.training.run import run as train
from pumer.utils.config import to_dict
from pumer.utils.files import read_json, write_json
from pumer.utils.locks import only_one
from pumer.utils.provenance import collect
from pumer.utils.shipped import checkpoint_dir
from pumer.utils.tensors import best_device
from pumer.visualization.visualize import ask
from pumer.world import write_vqav2

TASK = TASKS["vqav2"]
ORIGINAL, REDUCED = "original", "reduced, distilled"


@dataclass(frozen=True)
class _Model:
    """One model of the comparison.

    Attributes:
        key: name of its files.
        name: as the report calls it.
        note: how it came about.
        weights: folder of its weights.
        training: what its fine-tuning changes in the common recipe; None if it is not fine-tuned here.
        reduction: replaces the one that its weights were saved with.
        unseen: also test it on the held-out combinations.
    """

    key: str
    name: str
    note: str
    weights: Path
    training: Mapping[str, Any] | None = None
    reduction: dict[str, Any] | None = None
    unseen: bool = False


def run(config: DemoConfig, console: Console | None = None) -> dict[str, Any]:
    """Make the comparison, or what is missing of it, and write `report.html` and `results.json`.

    Args:
        config: what to compare.
        console: where progress, the tables and the path of the report go; the terminal by default.

    Returns:
        The results, as `pumer.demo.report` describes them.

    Raises:
        InputError: for whatever the user can correct.
    """
    config.check_places()
    with only_one(*config.written):
        return _compared(config, console or Console())


def _compared(config: DemoConfig, console: Console) -> dict[str, Any]:
    done = run_stages(_stages(config), config.output / "stages", console)
    results = _results(config, done)
    write_json(config.output / "results.json", results)
    report.write(results, config.output / "report.html")
    console.print(report.tables(results), results["summary"], highlight=False)
    console.print(f"report: {config.output / 'report.html'}", highlight=False, soft_wrap=True)
    return results


def _models(config: DemoConfig) -> list[_Model]:
    """The models, the one that the others are compared with first."""
    folder, start = config.output / "models", _start(config)
    original, reduced = folder / "original", folder / "reduced"
    text, image = folder / "text-only", folder / "image-only"
    distilled = {
        "teacher": str(original),
        "reduction": config.reduction,
        "data": TrainingData(_data(config), eval=None),
    }
    note = f"from the same start, with the original as teacher; {config.world.train:,} questions"
    blind = {"optimizer": config.blind_optimizer}
    return [
        _Model("original", "original", f"fine-tuned on {config.questions:,} questions", original, {}, unseen=True),
        _Model("untuned", "reduced, not fine-tuned", "the original's weights", original, None, config.reduction, True),
        _Model(
            "reduced",
            REDUCED,
            note,
            reduced,
            distilled,
            unseen=True,
        ),
        _Model("text-only", "text only", "fine-tuned and tested with a grey image", text, blind | {"blank": "image"}),
        _Model(
            "image-only", "image only", "fine-tuned and tested with empty questions", image, blind | {"blank": "text"}
        ),
        _Model("pretrained", "before fine-tuning", "what every fine-tuning starts from", start),
    ]


def _start(config: DemoConfig) -> Path:
    return config.model or checkpoint_dir()


def _stages(config: DemoConfig) -> list[Stage]:
    """All steps; each names the ones whose results it needs."""
    models, start = _models(config), _digest(_start(config) / "model.safetensors")
    stages = [Stage("world", "write pictures and questions", to_dict(config.world), partial(_write_world, config))]
    for model in models:
        if model.training is not None:
            stages.append(_training(config, model, start))
    trained = {stage.name for stage in stages}
    for model in models:
        needed = {"world", f"train-{model.weights.name}", "test-original"} & (trained | {"test-original"})
        stages.append(
            Stage(
                f"test-{model.key}",
                f"test: {model.name}",
                [start, model.reduction],
                partial(_test, config, model),
                sorted(needed - {f"test-{model.key}"}),
            )
        )
    timing = [config.reduction, config.pairs, config.largest_batch]
    return [
        *stages,
        Stage("constants", "best constant answer per template", None, partial(_constants, config), ["test-original"]),
        Stage("timing", "time original and reduced", timing, partial(_time, config), ["train-reduced"]),
        Stage("pictures", "draw one question of each type", None, partial(_draw, config), ["test-reduced"]),
    ]


def _digest(weights: Path) -> str | None:
    """What tells these weights from others."""
    return hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None


def _data(config: DemoConfig) -> Path:
    return config.output / "data"


def _answers(config: DemoConfig, key: str) -> Path:
    return config.output / "answers" / f"{key}.json"


def _write_world(config: DemoConfig) -> None:
    write_vqav2(_data(config), **to_dict(config.world))


def _training(config: DemoConfig, model: _Model, start: str | None) -> Stage:
    """The step that fine-tunes a model by the recipe that all share."""
    common = {
        "model": str(_start(config)),
        "output": model.weights,
        "data": TrainingData(_data(config), eval=None, limit=config.questions),
        "optimizer": config.optimizer,
        "epochs": 1,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "report_to": (),
    }
    recipe = TrainConfig(**{**common, **(model.training or {})})

    def work() -> dict[str, Any]:
        result = train(recipe)
        return {name: result[name] for name in ("steps", "seconds", "samples_per_second", "loss")}

    after = ["world", "train-original"] if recipe.teacher else ["world"]
    return Stage(f"train-{model.key}", f"fine-tune: {model.name}", [start, to_dict(recipe)], work, after, model.weights)


def _test(config: DemoConfig, model: _Model) -> dict[str, Any]:
    """Accuracy on the test split, beside the original's, and on the held-out combinations."""
    settings = EvaluateConfig(
        str(model.weights),
        data=EvaluationData(_data(config), train=None),
        reduction=model.reduction,
        per_example=_answers(config, model.key),
        against=None if model.key == "original" else _answers(config, "original"),
        force=True,  # of an attempt that was interrupted
    )
    result = evaluate(settings)
    if model.unseen:
        elsewhere = EvaluationData(_data(config) / "heldout", train=None)
        unseen = evaluate(replace(settings, data=elsewhere, per_example=None, against=None))
        result["unseen"] = unseen["accuracy"]
    return result


def _constants(config: DemoConfig) -> dict[str, Any]:
    """The baseline that knows the question's template alone."""
    train_split, test_split = (TASK.read(_data(config), split) for split in ("train", "val"))
    task = TASK(TASK.vocabulary(_data(config), minimum=1))
    answers = constant_per_template(task, train_split, test_split)
    ids = [example.id for example in test_split]
    scores = dict(zip(ids, task.scores(test_split, answers).tolist(), strict=True))
    original = read_json(_answers(config, "original"))
    compared = compare(scores, dict(zip(ids, answers, strict=True)), original)
    return {**summarise(task, test_split, answers), "difference": compared}


def _draw(config: DemoConfig) -> list[dict[str, Any]]:
    """Pictures of the first test question of each type."""
    folder = config.output / "models" / "reduced"
    model, processor = load(folder), load_processor(folder)
    inputs = make_inputs(processor, text_length_of(model, None))
    answers = {entry["id"]: entry["answer"] for entry in read_json(_answers(config, "original"))["examples"]}
    first: dict[str, Example] = {}
    for example in TASK.read(_data(config), "val"):
        first.setdefault(example.groups["question_type"], example)
    shutil.rmtree(config.output / "pictures", ignore_errors=True)
    (config.output / "pictures").mkdir()
    pictures = []
    for number, (_, example) in enumerate(sorted(first.items())):
        answer, picture = ask(model, TASK(labels_of(model)), inputs, example)
        path = Path("pictures") / f"{number}.png"
        picture.save(config.output / path)
        given = {ORIGINAL: answers[example.id], REDUCED: answer}
        (truth, _), *_ = Counter(example.answers).most_common(1)
        pictures.append({"path": str(path), "question": example.text, "truth": truth, "answers": given})
    return pictures


def _time(config: DemoConfig) -> dict[str, Any]:
    """Speed, memory and MACs of the reduced model beside its unreduced self, see `pumer.profiling.benchmark.run`."""
    folder = config.output / "models" / "reduced"
    model, tokenizer = load(folder), load_processor(folder).tokenizer
    questions = [example.text for example in TASK.read(_data(config), "val")]
    text_length = min(max(map(len, tokenizer(questions).input_ids)), text_length_of(model, None))
    original = variant(model, NoReduction()).to(best_device())
    batch_of = partial(inputs_for, original, original.config.image_size, text_length)
    best = fastest_batch(original, batch_of, most=config.largest_batch)["batch"]
    settings = BenchmarkConfig(
        model=str(folder),
        transformers=False,
        batch_sizes=(1, best),
        pairs=config.pairs,
        memory_batch=best,
        text_length=text_length,
    )
    return benchmark(settings, Console(quiet=True))


def _results(config: DemoConfig, done: Mapping[str, Any]) -> dict[str, Any]:
    """The steps' results in the report's terms."""
    plans = done["timing"]["plan"].values()
    unreduced, reduced = done["timing"]["rows"]
    cost = {"original": unreduced, "reduced": reduced}
    rows = []
    for model in _models(config):
        measured = {name: value for name, value in cost.get(model.key, {}).items() if name != "name"}
        rows.append(_row(model.name, model.note, done[f"test-{model.key}"]) | measured)
    constants = _row("best constant per template", "sees the question's template alone", done["constants"])
    rows.insert(-1, constants)
    return {
        "title": "A small ViLT, original and reduced",
        "summary": _summary(rows),
        "questions": done["test-original"]["questions"],
        "rows": rows,
        "tokens": {name: plan["tokens"] for name, plan in zip((ORIGINAL, REDUCED), plans, strict=True)},
        "pictures": done["pictures"],
        "training": {name: done[name] for name in done if name.startswith("train-")},
        "provenance": collect(config),
    }


def _row(name: str, note: str, test: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the report from the result of a test."""
    row = {"name": name, "note": note, "accuracy": test["accuracy"], "by_type": test["question_type"]}
    if "difference" in test:
        row |= {"difference": test["difference"]["difference"], "agreement": test["difference"]["agreement"]}
    if "unseen" in test:
        row["splits"] = {"unseen pairs": test["unseen"]}
    return row


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """The outcome in two sentences, whichever way it went."""
    named = {row["name"]: row for row in rows}
    original, reduced = named[ORIGINAL], named[REDUCED]
    accuracy, before = 100 * reduced["accuracy"]["mean"], 100 * original["accuracy"]["mean"]
    speeds = [
        f"{entry['speedup']['median']:.2f}x as fast at batch {entry['batch']}"
        for entry in reduced.get("speed", ())
        if "speedup" in entry
    ]
    return (
        f"The original answers {before:.1f} % of the questions right, the reduced model {accuracy:.1f} %, with "
        f"{original['macs'] / reduced['macs']:.2f} times fewer multiply-accumulates. "
        f"Measured on this machine, it is {' and '.join(speeds)}."
    )
