"""The schedules that `PuMerConfig.preset` offers, on trained unreduced models and without fine-tuning.

Takes folders that `pumer train` wrote, unreduced, and answers the questions of a test split with the paper's schedule
and with the gradual one, which needs as many MACs. Intervals are of the paired differences. Writes
`benchmarks/results/styles-<name>.json`; rows that are there are not measured again.
"""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import pumer
from benchmarks.common import RESULTS, difference, parser
from pumer.backbones import families_in
from pumer.checkpoint import load, trained_with
from pumer.evaluation.evaluate import run as evaluate
from pumer.evaluation.statistics import bootstrap, percent
from pumer.reducers import NoReduction, PuMerConfig, config_to_dict
from pumer.settings.evaluate import EvaluateConfig
from pumer.tasks import Retrieval, task_class
from pumer.utils.files import read_json, write_json
from pumer.utils.provenance import collect

STYLES = ("paper", "gradual")
ORIGINAL = "original"
WORDS = 20


def main() -> None:
    """Parse, measure, write."""
    options = parser(__doc__)
    options.add_argument("models", nargs="+", type=Path, help="folders of trained models, unreduced")
    options.add_argument("--name", default="vilt-small", help="of the result file")
    options.add_argument("--limit", type=int, help="questions of a model; all by default")
    options.add_argument("--galleries", default="20x10", help="retrieval: so many sets of so many images")
    options.add_argument("--work", type=Path, default=Path("out/styles"), help="folder of answers")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = options.parse_args()
    path = arguments.results / f"styles-{arguments.name}.json"
    result: dict[str, Any] = read_json(path) if path.exists() else {"rows": {}}
    for folder in arguments.models:
        task = trained_with(folder)["task"]
        if task not in result["rows"]:
            result["rows"][task] = measured(folder, task, arguments)
            settings = {name: str(getattr(arguments, name)) for name in ("models", "limit", "galleries")}
            write_json(path, result | {"provenance": collect(settings)})
    Console().print(table(result["rows"]))


def measured(folder: Path, task: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """By schedule `reduction`, `fewer_macs`, `accuracy`, `to_original`; and `questions`, `gradual_to_paper`."""
    model = load(folder)
    backbone = families_in(model)[0][1].name
    configs: dict[str, Any] = {ORIGINAL: NoReduction()}
    configs |= {style: PuMerConfig.preset(backbone, task, style=style) for style in STYLES}
    found: dict[str, Any] = {"questions": 0}
    answers = {}
    for name, config in configs.items():
        pumer.patch(model, config)
        macs = pumer.plan(model, text_length=WORDS).ideal_speedup
        answers[name] = scores(folder, task, name, config_to_dict(config), arguments)
        sources = [each["source"] for each in answers[name]]
        accuracy = bootstrap([each["score"] for each in answers[name]], sources)
        found[name] = {"reduction": config_to_dict(config), "fewer_macs": macs, "accuracy": accuracy}
        found[name]["to_original"] = difference(answers[name], answers[ORIGINAL])
    found["questions"] = len(answers[ORIGINAL])
    return found | {"gradual_to_paper": difference(answers["gradual"], answers["paper"])}


def scores(
    folder: Path, task: str, name: str, reduction: dict[str, Any], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Score and source of every example; in retrieval recall@1."""
    file = arguments.work / f"{folder.name}-{name}.json"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        ranks = issubclass(task_class(task), Retrieval)
        split = "val" if task == "vqav2" else "test"  # whose test split has no public answers
        galleries = {"galleries": arguments.galleries} if ranks else {}
        asked = {"model": str(folder), "reduction": reduction, "split": split, "per_example": file}
        evaluate(EvaluateConfig(**asked, limit=None if ranks else arguments.limit, **galleries))
    return list(read_json(file)["examples"])


def table(rows: dict[str, Any]) -> Table:
    """All tasks, in percent."""
    shown = Table("task", "schedule", "fewer MACs", "accuracy %", "to the original", "gradual to the paper's")
    for task, row in rows.items():
        for name in (ORIGINAL, *STYLES):
            own = row[name]
            about = (task, name, f"{own['fewer_macs']:.2f}x", f"{100 * own['accuracy']['mean']:.1f}")
            change = percent(row["gradual_to_paper"]) if name == "gradual" else ""
            shown.add_row(*about, "" if name == ORIGINAL else percent(own["to_original"]), change)
    return shown


if __name__ == "__main__":
    main()
