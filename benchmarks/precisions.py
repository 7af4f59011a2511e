"""Accuracy and speed of one model in several precisions: PyTorch, OpenVINO (f32, bf16, int8) and ONNX Runtime.

Takes folders that `pumer train` wrote, reduced or not, and answers the questions of a test split with each: official
accuracy, recall@1 in retrieval, with the interval of the difference to PyTorch in float32 on the same questions. Writes
`benchmarks/results/precisions-<name>-cpu.json`. Rows that are there are not measured again. Programs and answers are
kept below `--work`; run it where the models' paths to their data hold.

`--speed` measures speed instead, all rows in turn, on a machine that is idle otherwise.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import pumer
from benchmarks.common import RESULTS, parser
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


def main() -> None:
    """Parse, measure, write."""
    options = parser(__doc__)
    options.add_argument("models", nargs="+", type=Path, help="folders of trained models")
    options.add_argument("--name", default="vilt-small", help="of the result file")
    options.add_argument("--limit", type=int, default=2000, help="questions of a model")
    options.add_argument("--galleries", default="20x10", help="retrieval: so many sets of so many images")
    options.add_argument("--speed", action="store_true", help="measure speed alone")
    options.add_argument("--batches", type=int, nargs="+", default=[1, BATCH], help="of --speed")
    options.add_argument("--pairs", type=int, default=20, help="interleaved rounds of --speed, at least")
    options.add_argument("--work", type=Path, default=Path("out/precisions"), help="folder of programs and answers")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = options.parse_args()
    path = arguments.results / f"precisions-{arguments.name}-cpu.json"
    for folder in arguments.models:
        measured = Measured(folder, arguments, path)
        measured.speed() if arguments.speed else measured.accuracy()
        Console().print(table(measured.name, measured.result))


class Measured:
    """A model, and what the result file holds about it.

    Attributes:
        name: of its task and reduction, such as vqav2-pumer.
        result: `task`, `reduction`, `split`, `words`, `questions`, and of every row the measurements.
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
        self.result: dict[str, Any] = (read_json(path) if path.exists() else {}).get(self.name, about | {"rows": {}})

    def accuracy(self) -> None:
        """Answer the questions with every row that the result file lacks."""
        for row in (PYTORCH, *ROWS):
            if row not in self.result["rows"]:
                own, answers = self._answers(PYTORCH), self._answers(row)
                self.result["rows"][row] = compared(self.task, self.examples, answers, own)
                self._write()

    def speed(self) -> None:
        """Time all rows in turn, on random inputs."""
        models = {row: self._session(row).model.eval() for row in (PYTORCH, *ROWS)}
        exported = ExportedModel(self.work / "openvino-f32")
        make = partial(inputs_of, exported, self.result["words"])
        self.result["speed"] = compare(models, make, self.arguments.batches, self.arguments.pairs)
        self.result["speed"]["provenance"] = collect(self._settings())
        self._write()

    def _session(self, row: str) -> Session:
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
            session = self._session(row)
            if self.sets is None:
                found = predict(session, self.examples, BATCH, progress=True)
            else:
                found = rank(session, self.sets, BATCH, progress=True)
            write_json(file, found)
        return list(read_json(file))

    def _settings(self) -> dict[str, Any]:
        """The arguments, without the folders that are written to."""
        return {name: value for name, value in vars(self.arguments).items() if name not in ("results", "work")}

    def _write(self) -> None:
        self.result["provenance"] = collect(self._settings())
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
