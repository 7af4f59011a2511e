"""What the parts of a gradual schedule are worth: each changed by itself, at equal MACs and without fine-tuning.

Takes folders that `pumer train` wrote, unreduced. The schedule is one that `pumer tune` tries first and chose at 2.5
times fewer MACs: patches merged in every layer, a fifth of it pruned by text in the later half, words left alone. Each
variant is made as strong as it must be for the same MACs. Intervals are of the paired difference to the schedule.
Writes `benchmarks/results/parts.json`; what is below `--work` already is not answered again.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import RESULTS, difference, fingerprint, keep_settings, parser, user_errors
from pumer.evaluation.evaluate import run as evaluate
from pumer.evaluation.statistics import bootstrap, percent
from pumer.reducers import NoReduction, ReductionConfig, config_to_dict
from pumer.settings.evaluate import EvaluateConfig
from pumer.tasks.session import Session
from pumer.tuning.machine import Machine
from pumer.tuning.space import Shape, Space
from pumer.utils.errors import InputError
from pumer.utils.files import read_json, write_json
from pumer.utils.provenance import collect

SPEEDS = (2.0, 2.5)
"""Times fewer MACs."""
ORIGINAL, WHOLE = "original", "the schedule"
CHANGES: Mapping[str, Mapping[str, float]] = {
    WHOLE: {},
    "nothing pruned": {"prune": 0.0},
    "pruned in every layer": {"prune_from": 0.0},
    "words merged as patches are": {"text": 1.0},
}
TOME = "ToMe in every layer"
_CALIBRATION = 512


def main() -> None:
    """Parse, measure, write."""
    options = parser(__doc__)
    options.add_argument("models", nargs="+", type=Path, help="folders of trained models, unreduced")
    options.add_argument("--speeds", type=float, nargs="+", default=SPEEDS, help="times fewer MACs")
    options.add_argument("--limit", type=int, help="examples of a model; all by default")
    options.add_argument("--work", type=Path, default=Path("out/parts"), help="folder of answers")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = options.parse_args()
    rows: list[dict[str, Any]] = []
    with user_errors():
        for folder in arguments.models:
            rows += measured(folder, arguments)
            given = {name: str(getattr(arguments, name)) for name in ("models", "speeds", "limit")}
            write_json(arguments.results / "parts.json", {"rows": rows, "provenance": collect(given)})
    Console().print(table(rows))


def measured(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one model: `task`, `speed`, `variant`, `reduction`, `accuracy`, `to_original` and `to_whole`."""
    session = Session.open(folder)
    task, split = session.task.name, "val" if session.task.name == "vqav2" else "test"
    work = arguments.work / folder.name
    keep_settings(work, {"model": fingerprint(folder), "limit": arguments.limit})
    original, rows = scores(folder, ORIGINAL, NoReduction(), split, arguments.limit, work), []
    for speed in arguments.speeds:
        answers: dict[str, list[dict[str, Any]]] = {}
        for variant, config in variants(session, speed).items():
            answers[variant] = scores(folder, f"{variant}-{speed:g}", config, split, arguments.limit, work)
            found = answers[variant]
            row = {"task": task, "speed": speed, "variant": variant, "reduction": config_to_dict(config)}
            row["accuracy"] = bootstrap([each["score"] for each in found], [each["source"] for each in found])
            rows.append(
                row | {"to_original": difference(found, original), "to_whole": difference(found, answers[WHOLE])}
            )
    return rows


def variants(session: Session, speed: float) -> dict[str, ReductionConfig]:
    """The schedule, its variants and ToMe, each just strong enough for so many times fewer MACs."""
    if session.root is None:
        raise InputError(f"{session.name} has no record of its training data; give a folder that `pumer train` wrote")
    machine = Machine.of(session, session.task.read(session.root, "train")[-_CALIBRATION:], 1)
    space, whole = Space.of(session.model, machine.path.tokens), machine.planned(NoReduction())[1]
    seeds = space.seeds(session.task.name)
    shapes = {name: _changed(seeds["gradual, pruned late"], change) for name, change in CHANGES.items()}
    shapes[TOME] = seeds["tome"]
    found = {}
    for name, shape in shapes.items():
        config = space.at(shape, speed, lambda config: whole / machine.planned(config)[1])
        if config is None:
            raise InputError(f"{name} is never {speed:g} times cheaper; give other --speeds")
        found[name] = config
    return found


def _changed(shape: Shape, change: Mapping[str, float]) -> Shape:
    return {**shape, **{f"pumer.{setting}": value for setting, value in change.items()}}


def scores(
    folder: Path, name: str, config: ReductionConfig, split: str, limit: int | None, work: Path
) -> list[dict[str, Any]]:
    """Score and source of every example."""
    file = work / f"{name.replace(' ', '-')}.json"
    if not file.is_file():
        reduction = config_to_dict(config)
        evaluate(EvaluateConfig(model=str(folder), reduction=reduction, split=split, limit=limit, per_example=file))
    return list(read_json(file)["examples"])


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """All rows, in percent."""
    shown = Table("task", "fewer MACs", "variant", "accuracy %", "to the original", "to the schedule")
    for row in rows:
        about = (row["task"], f"{row['speed']:g}x", row["variant"], percent(row["accuracy"]))
        shown.add_row(*about, percent(row["to_original"]), percent(row["to_whole"]))
    return shown


if __name__ == "__main__":
    main()
