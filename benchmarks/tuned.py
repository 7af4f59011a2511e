"""Figure 5 fairly: every method with its best schedule, all found by the same search, at equal MACs.

Takes a folder that `pumer train` wrote, unreduced. `pumer tune` searches schedules of one method at a time for each
number of times fewer MACs, with as many trials and the same training examples for all. The test split, which no search
saw, is then answered with the original's weights; with `--train RECIPE` the reduced models are fine-tuned first, alike.
The paper's schedule is made stronger and weaker to reach the same MACs. Intervals are of the paired difference to it.

Writes `benchmarks/results/tuned-<name>.json` and a figure. What is below `--work` already is not done again, and with
other settings than it was made with refused.
"""

import argparse
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.common import RESULTS, difference, fingerprint, keep_settings, parser, user_errors
from pumer.checkpoint import trained_with
from pumer.evaluation.evaluate import run as evaluate
from pumer.evaluation.statistics import bootstrap, percent
from pumer.settings.evaluate import EvaluateConfig
from pumer.settings.train import TrainConfig
from pumer.settings.tune import BudgetConfig, TuneConfig
from pumer.training.run import run as train
from pumer.tuning.run import RESULT
from pumer.tuning.run import run as tune
from pumer.tuning.space import PAPER as PAPERS_LAYERS
from pumer.utils.commands import resolve
from pumer.utils.errors import InputError
from pumer.utils.files import read_json, write_bytes, write_json
from pumer.utils.provenance import collect
from pumer.utils.shipped import recipe_file

METHODS = ("pumer", "tome", "evit", "cls", "attention-received", "l2norm", "random", "pooling")
SPEEDS = (1.5, 1.75, 2.0, 2.5)
"""Times fewer MACs."""
ORIGINAL, PAPER = "original", "paper"


def main() -> None:
    """Parse, measure, write."""
    options = parser(__doc__)
    options.add_argument("model", type=Path, help="folder of a trained model, unreduced")
    options.add_argument("--name", required=True, help="of the result file, such as vilt-vqav2")
    options.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    options.add_argument("--speeds", type=float, nargs="+", default=SPEEDS, help="times fewer MACs")
    options.add_argument("--split", default="val", help="to answer; no search sees it")
    options.add_argument("--examples", type=int, default=512, help="of the training split, for the search")
    options.add_argument("--trials", type=int, default=40, help="schedules of each method at each speed")
    options.add_argument("--limit", type=int, help="examples of the split; all by default")
    options.add_argument("--seed", type=int, default=0, help="of the search and of the fine-tuning")
    options.add_argument("--train", help="recipe by which the reduced models are fine-tuned as well")
    options.add_argument("--trained-methods", nargs="+", choices=METHODS, help="those to fine-tune; all by default")
    options.add_argument("--trained-speeds", type=float, nargs="+", help="of those; all by default")
    options.add_argument("--work", type=Path, default=Path("out/tuned"), help="folder of models and answers")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = options.parse_args()
    with user_errors():
        measured = Measured(arguments)
        measured.run()
    Console().print(table(measured.rows))
    write_bytes(arguments.results / f"tuned-{arguments.name}.png", figure(measured.rows))


class Measured:
    """The rows of the result file, and how they are made.

    Attributes:
        rows: each with `speed`, `method`, `trained`, `reduction`, `accuracy`, and the paired `to_pumer` (its tuned
            schedule at the same speed), `to_paper` (the paper's) and `to_original`.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.work = arguments.work / arguments.name
        self.rows: list[dict[str, Any]] = []
        settings = {name: getattr(arguments, name) for name in ("split", "examples", "trials", "limit", "seed")}
        settings["model"] = fingerprint(arguments.model)
        if arguments.train:
            recipe = hashlib.sha256(recipe_file(arguments.train).read_bytes()).hexdigest()[:16]
            settings["train"] = f"{arguments.train} {recipe}"
        keep_settings(self.work, settings)

    def run(self) -> None:
        """Tune, train and answer whatever is missing; every answer is kept below the work folder."""
        for trained in (False, True)[: 1 + bool(self.arguments.train)]:
            original = self._scores(ORIGINAL, self.arguments.model, {"method": "none"})
            self._row(1.0, ORIGINAL, trained, {"method": "none"}, original, {ORIGINAL: original})
            methods, speeds = self.arguments.methods, self.arguments.speeds
            if trained:
                methods = self.arguments.trained_methods or methods
                speeds = self.arguments.trained_speeds or speeds
            for speed in speeds:
                found = {method: self._tuned(method, speed) for method in methods}
                schedules = {method: each["rows"][each["best"]]["reduction"] for method, each in found.items()}
                if "pumer" in found:
                    schedules = {PAPER: found["pumer"]["rows"][PAPERS_LAYERS]["reduction"]} | schedules
                scores = {ORIGINAL: original}
                for method, reduction in schedules.items():
                    name, model = f"{method}-{speed:g}", self.arguments.model
                    if trained:
                        model, name = self._trained(name, reduction), f"{name}-trained"
                    scores[method] = self._scores(name, model, reduction)
                    self._row(speed, method, trained, reduction, scores[method], scores)

    def _tuned(self, method: str, speed: float) -> dict[str, Any]:
        """The result of `pumer tune` for one method."""
        out = self.work / f"tune-{method}-{speed:g}"
        if not _complete(out, method):
            Console(stderr=True).print(f"{method}, {speed:g}x")
            settings = TuneConfig(
                model=str(self.arguments.model),
                out=out,
                budget=BudgetConfig(speedup=speed),
                cost="macs",
                methods=(method,),
                examples=self.arguments.examples,
                trials=self.arguments.trials,
                minutes=10**6,
                seed=self.arguments.seed,
            )
            tune(settings, Console(quiet=True))
        if not _complete(out, method):
            raise InputError(f"the paper's layers are not {speed:g} times cheaper in {out}; give other --speeds")
        return dict(read_json(out / RESULT))

    def _trained(self, name: str, reduction: Mapping[str, Any]) -> Path:
        """A model that was fine-tuned with a schedule."""
        out, schedule = self.work / f"model-{name}", self.work / f"{name}.json"
        if not (out / "model.safetensors").is_file():
            write_json(schedule, reduction)
            given = [f"reduction={schedule}", f"output={out}", f"teacher={self.arguments.model}"]
            given += ["data.eval=null", "patience=null", "report_to=[]", f"seed={self.arguments.seed}"]
            train(resolve(TrainConfig, given, recipe_file(self.arguments.train)))
        return out

    def _scores(self, name: str, model: Path, reduction: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Score and source of every example, by its place."""
        file = self.work / f"{name}-answers.json"
        if not file.is_file():
            self.work.mkdir(parents=True, exist_ok=True)
            settings = EvaluateConfig(
                model=str(model),
                reduction=dict(reduction),
                split=self.arguments.split,
                limit=self.arguments.limit,
                per_example=file,
            )
            evaluate(settings)
        return list(read_json(file)["examples"])

    def _row(
        self,
        speed: float,
        method: str,
        trained: bool,
        reduction: Mapping[str, Any],
        scores: Sequence[Mapping[str, Any]],
        others: Mapping[str, Sequence[Mapping[str, Any]]],
    ) -> None:
        """Add a row, beside others that are answered already, and write the file."""
        row: dict[str, Any] = {"speed": speed, "method": method, "trained": trained, "reduction": reduction}
        row["questions"] = len(scores)
        row["accuracy"] = bootstrap([each["score"] for each in scores], [each["source"] for each in scores])
        for name in (ORIGINAL, PAPER, "pumer"):
            row[f"to_{name}"] = difference(scores, others[name]) if name in others else None
        self.rows.append(row)
        names = ["model", "methods", "speeds", "split", "examples", "trials", "limit", "seed"]
        names += ["train", "trained_methods", "trained_speeds"]
        settings = {name: str(getattr(self.arguments, name)) for name in names}
        recorded = {"task": trained_with(self.arguments.model)["task"], "rows": self.rows}
        path = self.arguments.results / f"tuned-{self.arguments.name}.json"
        write_json(path, recorded | {"provenance": collect(settings)})


def _complete(folder: Path, method: str) -> bool:
    """Whether a folder holds a result of `pumer tune`, and of method `pumer` one with the paper's layers."""
    rows = read_json(folder / RESULT)["rows"] if (folder / RESULT).is_file() else {}
    return bool(rows) and (method != "pumer" or PAPERS_LAYERS in rows)


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """All rows, in percent."""
    shown = Table("fewer MACs", "method", "fine-tuned", "accuracy %", "to the original", "to PuMer, tuned")
    for row in rows:
        to_pumer = "" if row["to_pumer"] is None else percent(row["to_pumer"])
        trained = "yes" if row["trained"] else ""
        about = (f"{row['speed']:g}x", row["method"], trained, percent(row["accuracy"]))
        shown.add_row(*about, percent(row["to_original"]), to_pumer)
    return shown


def figure(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Accuracy against MACs, a line per method."""
    kinds = sorted({row["trained"] for row in rows})
    drawing = Figure(figsize=(5.5 * len(kinds), 4.2), layout="constrained")
    for axes, trained in zip(drawing.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        shown = [row for row in rows if row["trained"] == trained]
        for place, method in enumerate((PAPER, *METHODS)):
            if own := [row for row in shown if row["method"] == method]:
                heights = [100 * row["accuracy"]["mean"] for row in own]
                style = {"color": "black", "linewidth": 2.2} if method == "pumer" else {"color": f"C{place}"}
                label = {PAPER: "pumer, the paper's layers", "pumer": "pumer, tuned"}.get(method, method)
                axes.plot([row["speed"] for row in own], heights, marker="o", markersize=4, label=label, **style)
        axes.axhline(100 * shown[0]["accuracy"]["mean"], color="0.6", linestyle=":", label=ORIGINAL)
        axes.set(xlabel="times fewer MACs", ylabel="accuracy %", title="fine-tuned" if trained else "not fine-tuned")
        axes.grid(color="0.92")
        axes.legend(frameon=False, fontsize=8)
    image = io.BytesIO()
    drawing.savefig(image, format="png", dpi=110)
    return image.getvalue()


if __name__ == "__main__":
    main()
