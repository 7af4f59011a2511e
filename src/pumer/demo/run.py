"""The whole comparison from one command, on the built-in world: fine-tune, reduce, distil, export, time, report."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from pumer.demo import report
from pumer.demo.stages import Stage, run_stages
from pumer.evaluation.evaluate import run as evaluate
from pumer.evaluation.summary import OtherRun, constant_per_template, summarise
from pumer.exporting.export import run as export
from pumer.exporting.runtime import ExportedModel
from pumer.exporting.session import Program
from pumer.profiling.benchmark import run as benchmark
from pumer.profiling.inputs import inputs_for
from pumer.profiling.named_models import variant
from pumer.profiling.timing import compare, fastest_batch
from pumer.reducers import NoReduction
from pumer.settings.benchmark import BenchmarkConfig
from pumer.settings.demo import DemoConfig
from pumer.settings.evaluate import EvaluateConfig, EvaluationData
from pumer.settings.export import ExportConfig
from pumer.settings.train import TrainConfig, TrainingData
from pumer.tasks import TASKS, Example
from pumer.tasks.loading import text_length_of
from pumer.tasks.session import Session
from pumer.training.run import run as train
from pumer.utils.config import to_dict
from pumer.utils.files import read_json, write_json
from pumer.utils.locks import exclusive
from pumer.utils.provenance import collect
from pumer.visualization.visualize import ask
from pumer.world import write_vqav2

TASK = TASKS["vqav2"]
ORIGINAL, UNTUNED, REDUCED = "original", "reduced, not fine-tuned", "reduced, distilled"
EXPORTED, TEXT_ONLY, CONSTANT = "reduced, exported", "text only", "best constant per template"
RUNTIME = "openvino"
"""What runs the exported model; without it the demo has none."""


@dataclass(frozen=True)
class _Model:
    """One model of the comparison: `key` names its files; `name` and `note`, how it was made, are shown in the report.

    `training` are changes of its fine-tuning to the common recipe, None if it is not fine-tuned here. `reduction`
    replaces the saved one. `unseen`: also test it on the held-out combinations.
    """

    key: str
    name: str
    note: str
    weights: Path
    training: Mapping[str, Any] | None = None
    reduction: dict[str, Any] | None = None
    unseen: bool = False


@exclusive
def run(config: DemoConfig, console: Console | None = None) -> dict[str, Any]:
    """Make the comparison, or the missing part of it, and write `report.html` and `results.json`.

    Args:
        config: what to compare.
        console: for the tables and the path of the report; stdout by default. Progress goes to stderr.

    Returns:
        The results, see `pumer.demo.report`.
    """
    console, page = console or Console(), config.output / "report.html"
    comparison = _Comparison(config)
    results = comparison.results(run_stages(comparison.stages(), config.output / "stages", Console(stderr=True)))
    write_json(config.output / "results.json", results)
    report.write(results, page)
    console.print(report.tables(results), results["summary"], highlight=False)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    return results


class _Comparison:
    """The models and the steps that make, test and time them."""

    def __init__(self, config: DemoConfig) -> None:
        self.config, self.start = config, Path(config.model)
        self.data, self.reduced = config.output / "data", config.output / "models" / "reduced"
        self.exported = config.output / "models" / "exported" if find_spec(RUNTIME) else None
        self.models = self._models()

    def _models(self) -> list[_Model]:
        """The model that all others are compared with comes first."""
        config, folder = self.config, self.config.output / "models"
        original, reduction = folder / "original", config.reduction
        distilled = {"teacher": str(original), "reduction": reduction, "data": TrainingData(root=self.data, eval=None)}
        blind = {"optimizer": config.blind_optimizer}
        taught = f"from the same start, with the original as teacher; {config.world.train:,} questions"
        grey, empty = "fine-tuned and tested with a grey image", "fine-tuned and tested with empty questions"
        models = [
            _Model("original", ORIGINAL, f"fine-tuned on {config.questions:,} questions", original, {}, unseen=True),
            _Model("untuned", UNTUNED, "the original's weights", original, None, reduction, True),
            _Model("reduced", REDUCED, taught, self.reduced, distilled, unseen=True),
            _Model("text-only", TEXT_ONLY, grey, folder / "text-only", blind | {"blank": "image"}),
            _Model("image-only", "image only", empty, folder / "image-only", blind | {"blank": "text"}),
        ]
        if self.exported is not None:
            models.insert(3, _Model("exported", EXPORTED, f"the same, run by {RUNTIME}", self.exported))
        return models

    def stages(self) -> list[Stage]:
        """All steps; each names the ones whose results it needs."""
        config, weights = self.config, self.start / "model.safetensors"
        digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None
        world = partial(write_vqav2, self.data, **to_dict(config.world))
        stages = [Stage("world", "write images and questions", to_dict(config.world), lambda: str(world()))]
        stages += [self._training(model, digest) for model in self.models if model.training is not None]
        if self.exported is not None:
            stages.append(
                Stage("export", f"export: {REDUCED}", RUNTIME, self._export, ["train-reduced"], self.exported)
            )
        made = {stage.name: stage.folder for stage in stages}
        for model in self.models:
            needed = {"world", *(name for name, folder in made.items() if folder == model.weights)}
            needed |= {"test-original"} if model.key != "original" else set()
            work, settings = partial(self._test, model), [digest, model.reduction]
            stages.append(Stage(f"test-{model.key}", f"test: {model.name}", settings, work, sorted(needed)))
        timing = [config.reduction, config.pairs, config.largest_batch]
        return [
            *stages,
            Stage("constants", "best constant answer per template", None, self._constants, ["test-original"]),
            Stage(
                "timing",
                "time original and reduced",
                timing,
                self._time,
                ["export" if self.exported else "train-reduced"],
            ),
            Stage("examples", "draw one question of each type", None, self._draw, ["test-reduced"]),
        ]

    def _training(self, model: _Model, digest: str | None) -> Stage:
        """Fine-tune a model by the recipe that all share."""
        config = self.config
        common: dict[str, Any] = {
            "model": str(self.start),
            "output": model.weights,
            "data": TrainingData(root=self.data, eval=None, limit=config.questions),
            "optimizer": config.optimizer,
        }
        common |= {"epochs": 1, "batch_size": config.batch_size, "seed": config.seed, "report_to": ()}
        recipe = TrainConfig(**{**common, **(model.training or {})})

        def work() -> dict[str, Any]:
            result = train(recipe)
            return {name: result[name] for name in ("steps", "seconds", "samples_per_second", "loss")}

        after, settings = ["world", "train-original"] if recipe.teacher else ["world"], [digest, to_dict(recipe)]
        return Stage(f"train-{model.key}", f"fine-tune: {model.name}", settings, work, after, model.weights)

    def _export(self) -> dict[str, Any]:
        """The reduced model as a program; how far its logits are from the model's."""
        assert self.exported is not None
        record = export(ExportConfig(model=str(self.reduced), out=self.exported, force=self.exported.exists()))
        return {"differences": record["differences"]}

    def _answers(self, key: str = "original") -> Path:
        return self.config.output / "answers" / f"{key}.json"

    def _test(self, model: _Model) -> dict[str, Any]:
        """Accuracy on the test split, beside the original's, and on the held-out combinations."""
        settings = EvaluateConfig(
            model=str(model.weights),
            data=EvaluationData(root=self.data, train=None),
            reduction=model.reduction,
            per_example=self._answers(model.key),
            against=None if model.key == "original" else self._answers(),
            force=True,  # of an attempt that was interrupted
        )
        result = evaluate(settings)
        if model.unseen:
            heldout = EvaluationData(root=self.data / "heldout", train=None)
            result["unseen"] = evaluate(replace(settings, data=heldout, per_example=None, against=None))["accuracy"]
        return result

    def _constants(self) -> dict[str, Any]:
        """The baseline that knows the question's template alone."""
        train_split, test_split = (TASK.read(self.data, split) for split in ("train", "val"))
        task = TASK(TASK.vocabulary(self.data, minimum=1))
        answers = constant_per_template(task, train_split, test_split)
        return summarise(task, test_split, answers, against=OtherRun(self._answers(), task, test_split))

    def _draw(self) -> list[dict[str, Any]]:
        """The first test question of each type, and one that is lost: its tokens drawn, and the answers."""
        session, folder = Session.open(self.reduced), self.config.output / "images"
        answers, reduced = (
            {entry["id"]: entry["answer"] for entry in read_json(self._answers(key))["examples"]}
            for key in ("original", "reduced")
        )
        first: dict[str, Example] = {}
        lost: list[Example] = []
        for example in TASK.read(self.data, "val"):
            first.setdefault(example.groups["question_type"], example)
            if answers[example.id] == _truth(example) != reduced[example.id]:
                lost.append(example)
        chosen = [example for _, example in sorted(first.items())]
        if not any(example in lost for example in chosen):
            chosen += lost[:1]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        drawn = []
        for number, example in enumerate(chosen):
            answer, drawing, *_ = ask(session, example)
            path = folder / f"{number}.png"
            drawing.save(path)
            given = {ORIGINAL: answers[example.id], REDUCED: answer}
            place = str(path.relative_to(self.config.output))
            drawn.append({"path": place, "question": example.text, "truth": _truth(example), "answers": given})
        return drawn

    def _time(self) -> dict[str, Any]:
        """Speed, memory and MACs beside the same model unreduced, see `pumer.profiling.benchmark.run`.

        With `exported`, the points of `pumer.profiling.timing.compare` for the program beside it.
        """
        session = Session.open(self.reduced)
        tokens = session.processor.tokenizer([example.text for example in TASK.read(self.data, "val")]).input_ids
        text_length = min(max(map(len, tokens)), text_length_of(session.model.config, None))
        original = variant(session.model, NoReduction())
        batch_of = partial(inputs_for, original, original.config.image_size, text_length)
        best = fastest_batch(original, batch_of, most=self.config.largest_batch)["batch"]
        settings = BenchmarkConfig(
            model=str(self.reduced),
            transformers=False,
            batch_sizes=(1, best),
            pairs=self.config.pairs,
            memory_batch=best,
            text_length=text_length,
        )
        result = benchmark(settings, Console(quiet=True))
        if self.exported is not None:
            models = {ORIGINAL: original.eval(), EXPORTED: Program(ExportedModel(self.exported))}
            result["exported"] = compare(models, batch_of, settings.batch_sizes, self.config.pairs)["points"]
        return result

    def results(self, done: Mapping[str, Any]) -> dict[str, Any]:
        """The steps' results in the report's terms."""
        plans = done["timing"]["plan"].values()
        cost = dict(zip(("original", "reduced"), done["timing"]["rows"], strict=True))
        if "exported" in done["timing"]:
            timed = {point["batch"]: point["models"][EXPORTED] for point in done["timing"]["exported"]}
            kept = ("images_per_second", "speedup")
            cost["exported"] = {
                "speed": [{"batch": at} | {name: each[name] for name in kept} for at, each in timed.items()]
            }
        rows = [
            cost.get(model.key, {}) | _row(model.name, model.note, done[f"test-{model.key}"]) for model in self.models
        ]
        rows.append(_row(CONSTANT, "sees the question's template alone", done["constants"]))
        return {
            "title": "A small ViLT, original and reduced",
            "summary": _summary(rows),
            "story": _story(rows),
            "questions": done["test-original"]["questions"],
            "rows": rows,
            "tokens": {name: plan["tokens"] for name, plan in zip((ORIGINAL, REDUCED), plans, strict=True)},
            "examples": done["examples"],
            "training": {name: done[name] for name in done if name.startswith("train-")},
            "provenance": collect(self.config),
        }


def _truth(example: Example) -> str:
    (answer, _), *_ = Counter(example.answers).most_common(1)
    return answer


def _row(name: str, note: str, test: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the report from the result of a test."""
    row = {"name": name, "note": note, "accuracy": test["accuracy"], "by_type": test["question_type"]}
    if "difference" in test:
        row |= {"difference": test["difference"]["difference"], "agreement": test["difference"]["agreement"]}
    if "unseen" in test:
        row["splits"] = {"unseen pairs": test["unseen"]}
    return row


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """The outcome in two sentences, whether the reduced model is faster or not."""
    named = {row["name"]: row for row in rows}
    original, reduced = named[ORIGINAL], named[REDUCED]
    return (
        f"The original answers {_percent(original)} of the questions right, the reduced model {_percent(reduced)}, "
        f"with {original['macs'] / reduced['macs']:.2f} times fewer multiply-accumulates. "
        f"Measured on this machine, it is {_speed(reduced)}."
    )


def _story(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What the comparison shows step by step: headings with a sentence or two."""
    named = {row["name"]: row for row in rows}
    original, untuned, reduced = named[ORIGINAL], named[UNTUNED], named[REDUCED]
    story = [
        (
            "Why an original",
            "A loss is only worth measuring on a model that looks at the image: the original answers "
            f"{_percent(original)} right, the same model without images {_percent(named[TEXT_ONLY])}, the best "
            f"answer to each kind of question {_percent(named[CONSTANT])}.",
        ),
        (
            "Reduced",
            f"With fewer tokens and nothing else changed, it answers {_percent(untuned)} right. "
            f"Fine-tuned with the original as teacher, {_percent(reduced)}.",
        ),
        (
            "What it buys",
            f"{original['macs'] / reduced['macs']:.2f} times fewer multiply-accumulates; measured on this machine "
            f"{_speed(reduced)}.",
        ),
    ]
    if (exported := named.get(EXPORTED)) is not None:
        story.append(
            ("Exported", f"As a program of {RUNTIME} it answers {_percent(exported)} right; {_speed(exported)}.")
        )
    return story


def _percent(row: Mapping[str, Any]) -> str:
    return f"{100 * row['accuracy']['mean']:.1f} %"


def _speed(row: Mapping[str, Any]) -> str:
    """Speed beside the original's at each batch size."""
    return " and ".join(f"{at['speedup']['median']:.2f}x as fast at batch {at['batch']}" for at in row["speed"])
