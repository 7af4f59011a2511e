"""Accuracy and speed of one model in several precisions: PyTorch, OpenVINO (f32, bf16, int8) and ONNX Runtime.

Takes folders that `pumer train` wrote, reduced or not, and answers the questions of a test split with each: official
accuracy, recall@1 in retrieval, with the interval of the difference to PyTorch in float32 on the same questions. Writes
`benchmarks/results/precisions-<name>-cpu.json`. Rows that are there are not measured again. Programs and answers are
kept below `--work`, each of one model and the same questions; run it where the models' paths to their data hold.

`--speed` measures speed instead, all rows of all models of a task in turn, on a machine that is idle otherwise: give an
original and its reduced model together. Speed-ups are over the original in PyTorch.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import pumer
from benchmarks.common import RESULTS, check_same, fingerprint, keep_settings, parser, user_errors
from pumer.checkpoint import load_processor, read_reduction, trained_with
from pumer.evaluation.evaluate import predict
from pumer.evaluation.ranking import CandidateSets, rank
from pumer.evaluation.statistics import bootstrap
from pumer.evaluation.summary import sources_of
from pumer.exporting.benchmark import inputs_of
from pumer.exporting.runtime import ExportedModel
from pumer.exporting.session import ExportedSession, Program
from pumer.profiling.timing import compare
from pumer.settings.export import Precision, Runtime
from pumer.tasks import Example, Retrieval, Task, task_class
from pumer.tasks.session import Session
from pumer.utils.files import read_json, write_json
from pumer.utils.provenance import collect

PYTORCH = "PyTorch f32"
ROWS: dict[str, tuple[Runtime, Precision]] = {
    "OpenVINO f32": ("openvino", "f32"),
    "OpenVINO bf16": ("openvino", "bf16"),
    "OpenVINO int8": ("openvino", "int8"),
    "ONNX Runtime f32": ("onnx", "f32"),
}
"""Beside PyTorch: runtime and precision of each."""
BATCH = 32
ROUNDS = 20
"""Interleaved forwards of each model when speed is measured."""


def main() -> None:
    """Parse, measure, write."""
    options = parser(__doc__)
    options.add_argument("models", nargs="+", type=Path, help="folders of trained models")
    options.add_argument("--name", default="vilt-small", help="of the result file")
    options.add_argument("--limit", type=int, default=2000, help="questions of a model")
    options.add_argument("--galleries", default="20x10", help="retrieval: so many sets of so many images")
    options.add_argument("--speed", action="store_true", help="measure speed alone")
    options.add_argument("--batches", type=int, nargs="+", default=[1, BATCH], help="of --speed")
    options.add_argument("--work", type=Path, default=Path("out/precisions"), help="folder of programs and answers")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = options.parse_args()
    path = arguments.results / f"precisions-{arguments.name}-cpu.json"
    with user_errors():
        measured = [Measured(folder, arguments, path) for folder in arguments.models]
        for task in dict.fromkeys(each.task.name for each in measured):
            group = [each for each in measured if each.task.name == task]
            if arguments.speed:
                speed(group, arguments.batches)
            for each in group:
                if not arguments.speed:
                    each.accuracy()
                Console().print(table(each.name, each.result))


def speed(group: Sequence["Measured"], batches: Sequence[int]) -> None:
    """Time all rows of the models of a task in turn, on random inputs."""
    group = sorted(group, key=lambda each: each.result["reduction"] != "none")  # the first is the baseline
    models: dict[str, Any] = {}
    inputs: dict[str, Any] = {}
    for each in group:
        own = {f"{each.name}, {row}": each.session(row).model.eval() for row in (PYTORCH, *ROWS)}
        models, inputs = models | own, inputs | dict.fromkeys(own, each.inputs)
    found = compare(models, inputs, batches, ROUNDS)
    for each in group:
        points = []
        for point in found["points"]:
            rows = {row: point["models"][f"{each.name}, {row}"] for row in (PYTORCH, *ROWS)}
            points.append(point | {"models": rows})
        each.result["speed"] = {"baseline": found["baseline"], "points": points, "provenance": each.provenance()}
        each.write()


class Measured:
    """A model, and what the result file holds about it.

    Attributes:
        name: of its task and reduction, such as vqav2-pumer.
        result: `task`, `reduction`, `split`, `words`, `questions`, of every row the measurements, with `provenance` by
            row, and `speed` with its own.
    """

    def __init__(self, folder: Path, arguments: argparse.Namespace, path: Path) -> None:
        self.folder, self.arguments, self.path = folder, arguments, path
        recorded = trained_with(folder)
        task, reduction = task_class(recorded["task"]), read_reduction(folder)
        method = "none" if reduction is None else reduction.method
        self.name = f"{task.name}-{'original' if method == 'none' else method}"
        self.work = arguments.work / self.name
        split = "val" if task.name == "vqav2" else "test"  # whose test split has no public answers
        root = Path(recorded["data"]["root"])
        if issubclass(task, Retrieval):
            self.sets: CandidateSets | None = CandidateSets(task.read(root, split), arguments.galleries)
            texts, self.examples = [pair.text for pair in self.sets.pairs], self.sets.queries
        else:
            self.sets, self.examples = None, task.read(root, split, arguments.limit)
            texts = [example.text for example in self.examples]
        words = max(map(len, load_processor(folder).tokenizer(texts)["input_ids"]))
        self.task = task(task.fixed_labels)  # it scores alone, whatever the labels of a model are
        about = {
            "task": task.name,
            "reduction": method,
            "split": split,
            "questions": len(self.examples),
            "words": words,
        }
        about |= {"galleries": arguments.galleries} if self.sets else {}
        known = read_json(path) if path.exists() else {}
        self.result: dict[str, Any] = known.get(self.name, about | {"rows": {}, "provenance": {}})
        check_same(path, self.result, about, "--name")
        keep_settings(self.work, about | {"model": fingerprint(folder)})

    def accuracy(self) -> None:
        """Answer the questions with every row that the result file lacks."""
        for row in (PYTORCH, *ROWS):
            if row not in self.result["rows"]:
                own, answers = self._answers(PYTORCH), self._answers(row)
                self.result["rows"][row] = compared(self.task, self.examples, answers, own)
                self.result["provenance"][row] = self.provenance()
                self.write()

    def inputs(self, batch: int) -> dict[str, Tensor]:
        """Random inputs of so many examples, as long as the longest text."""
        return inputs_of(ExportedModel(self.work / "openvino-f32"), self.result["words"], batch)

    def session(self, row: str) -> Session:
        """A row's model, exported unless it is there: bfloat16 runs the float32 program."""
        if row == PYTORCH:
            return Session.open(self.folder, device="cpu")
        runtime, precision = ROWS[row]
        kept: Precision = "int8" if precision == "int8" else "f32"
        folder = self.work / f"{runtime}-{kept}"
        if not (folder / "export.json").is_file():
            pumer.export(self.folder, folder, runtime, kept, text_length=self.result["words"])
        program = Program(ExportedModel(folder, torch.get_num_threads(), precision))
        return replace(ExportedSession.load(folder), model=program, forward=program)

    def _answers(self, row: str) -> list[str]:
        """A row's answers, kept in a file."""
        file = self.work / f"{row}.json"
        if not file.is_file():
            session = self.session(row)
            if self.sets is None:
                found = predict(session, self.examples, BATCH, progress=True)
            else:
                found = rank(session, self.sets, BATCH, progress=True)
            write_json(file, found)
        return list(read_json(file))

    def provenance(self) -> dict[str, Any]:
        """Where numbers of this run come from; folders that are written to are left out of the settings."""
        return collect({name: value for name, value in vars(self.arguments).items() if name not in ("results", "work")})

    def write(self) -> None:
        """Into the result file, beside other models."""
        write_json(self.path, (read_json(self.path) if self.path.exists() else {}) | {self.name: self.result})


def compared(
    task: Task, examples: Sequence[Example], answers: Sequence[str], own: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """By metric: `mean`, `low`, `high`, its `difference` to the model's own answers (paired), and their `agreement`.

    The metric is the accuracy; in retrieval recall@1 of images (TR) and of captions (IR).
    """
    retrieval = isinstance(task, Retrieval)
    kinds = [("TR" if example.images else "IR") if retrieval else "accuracy" for example in examples]
    scores, before = task.scores(examples, answers).tolist(), task.scores(examples, own).tolist()
    firsts = ([each.split()[0] if retrieval else each for each in found] for found in (answers, own))
    same = [one == other for one, other in zip(*firsts, strict=True)]
    sources = sources_of(examples)
    found: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(kinds):
        rows = [row for row, each in enumerate(kinds) if each == kind]
        where = [sources[row] for row in rows]
        found[kind] = {
            **bootstrap([scores[row] for row in rows], where),
            "difference": bootstrap([scores[row] - before[row] for row in rows], where),
            "agreement": sum(same[row] for row in rows) / len(rows),
        }
    return found


def table(name: str, result: dict[str, Any]) -> Table:
    """Accuracy, and speed where it is known, of a model."""
    columns = ("metric", "%", "difference to PyTorch f32", "same answer %", "examples/s")
    shown = Table("model", *columns, title=f"{name}, {result['questions']} questions of split {result['split']}")
    points = result.get("speed", {"points": []})["points"]
    for row, metrics in result["rows"].items():
        speed = ", ".join(f"{each['models'][row]['images_per_second']:.0f}" for each in points)
        for kind, found in metrics.items():
            low, middle, high = (100 * found["difference"][key] for key in ("low", "mean", "high"))
            difference = f"{middle:+.2f} [{low:+.2f}, {high:+.2f}]"
            shown.add_row(row, kind, f"{100 * found['mean']:.2f}", difference, f"{100 * found['agreement']:.2f}", speed)
    return shown


if __name__ == "__main__":
    main()
