"""The schedules that `PuMerConfig.preset` offers, on trained unreduced models and without fine-tuning.

Takes folders that `pumer train` wrote, unreduced, and answers the questions of a test split with the paper's schedule
and with the gradual one, which needs about as many MACs; they are counted with 20 words. Intervals are of the paired
differences. Writes `benchmarks/results/styles-<name>.json`; rows of the same settings are not measured again.
"""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import pumer
from benchmarks.common import RESULTS, difference, fingerprint, parser, user_errors
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
METRICS = {"image": "TR", "caption": "IR"}
"""What is asked in retrieval, and the recall that it counts in."""


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
    rows: dict[str, Any] = read_json(path)["rows"] if path.exists() else {}
    with user_errors():
        for folder in arguments.models:
            asked = settings_of(folder, arguments)
            task = asked["task"]
            if task not in rows or rows[task]["settings"] != asked:
                given = {name: getattr(arguments, name) for name in ("models", "limit", "galleries")}
                measured_now = measured(folder, asked, arguments.work)
                rows[task] = measured_now | {"settings": asked, "provenance": collect(given)}
                write_json(path, {"rows": rows})
    Console().print(table(rows))


def settings_of(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the answers of a model depend on, beside its reduction."""
    known = fingerprint(folder)
    task = trained_with(folder)["task"]
    split = "val" if task == "vqav2" else "test"  # whose test split has no public answers
    asked = {"limit": arguments.limit}
    if issubclass(task_class(task), Retrieval):
        asked = {"galleries": arguments.galleries}
    return {"task": task, "model": known, "split": split, **asked}


def measured(folder: Path, asked: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """By schedule `reduction` and `fewer_macs`, and `metrics`: accuracy, or recall@1 of texts (TR) and of images (IR).

    Each of these has `questions`, by schedule `accuracy` and `to_original`, and `gradual_to_paper`.
    """
    model = load(folder)
    backbone = families_in(model)[0][1].name
    configs: dict[str, Any] = {ORIGINAL: NoReduction()}
    configs |= {style: PuMerConfig.preset(backbone, asked["task"], style=style) for style in STYLES}
    found: dict[str, Any] = {}
    answers = {}
    for name, config in configs.items():
        pumer.patch(model, config)
        macs = pumer.plan(model, text_length=WORDS).ideal_speedup
        found[name] = {"reduction": config_to_dict(config), "fewer_macs": macs}
        answers[name] = by_metric(scores(folder, name, found[name]["reduction"], asked, work))
    found["metrics"] = {}
    for metric in answers[ORIGINAL]:
        own = {name: each[metric] for name, each in answers.items()}
        found["metrics"][metric] = {"questions": len(own[ORIGINAL])} | {
            name: {
                "accuracy": bootstrap([each["score"] for each in entries], [each["source"] for each in entries]),
                "to_original": difference(entries, own[ORIGINAL]),
            }
            for name, entries in own.items()
        }
        found["metrics"][metric]["gradual_to_paper"] = difference(own["gradual"], own["paper"])
    return found


def by_metric(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Scored examples by what their score is: images are asked for texts, captions for images."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        kind = str(entry["id"]).partition(" ")[0]
        found.setdefault(METRICS.get(kind, "accuracy"), []).append(entry)
    return found


def scores(
    folder: Path, name: str, reduction: Mapping[str, Any], asked: Mapping[str, Any], work: Path
) -> list[dict[str, Any]]:
    """Score and source of every example, kept in a file that is named by all that they depend on."""
    key = hashlib.sha256(json.dumps([asked, reduction], sort_keys=True).encode()).hexdigest()[:8]
    file = work / f"{folder.name}-{name}-{key}.json"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        given = {key: value for key, value in asked.items() if key in ("split", "limit", "galleries")}
        evaluate(EvaluateConfig(model=str(folder), reduction=dict(reduction), per_example=file, **given))
    return list(read_json(file)["examples"])


def table(rows: Mapping[str, Any]) -> Table:
    """All tasks, in percent."""
    shown = Table("task", "schedule", "fewer MACs", "accuracy %", "to the original", "gradual to the paper's")
    for task, row in rows.items():
        for metric, found in row["metrics"].items():
            label = task if metric == "accuracy" else f"{task} {metric}"
            for name in (ORIGINAL, *STYLES):
                own = found[name]
                about = (label, name, f"{row[name]['fewer_macs']:.2f}x", f"{100 * own['accuracy']['mean']:.1f}")
                change = percent(found["gradual_to_paper"]) if name == "gradual" else ""
                shown.add_row(*about, "" if name == ORIGINAL else percent(own["to_original"]), change)
    return shown


if __name__ == "__main__":
    main()
