"""What the teacher is worth: the small ViLT, reduced and fine-tuned in the built-in world without it and with it.

Fine-tunes the original, then from its weights the reduced model (2,5,8; 0.1/0.3/0.2) in three ways, each with three
seeds: on the labels alone (`labels`), with the original as teacher (`distilled`), and with its final hidden states as
well (`hidden`). What is finished is kept: an interrupted run goes on where it was. Several processes can share the
work, once `--rows original` has prepared it:

    python benchmarks/distillation_rows.py --rows original
    python benchmarks/distillation_rows.py --rows labels distilled &
    python benchmarks/distillation_rows.py --rows hidden

Whoever finishes the last run writes `benchmarks/results/distillation-rows.json`: of each row the mean over seeds and
the paired difference to the original, per seed and of the mean, with 95% bootstrap intervals over questions.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pumer.checkpoint import read_json, write_json
from pumer.config import to_dict
from pumer.evaluate import EvaluateConfig, EvaluationData
from pumer.evaluate import run as evaluate
from pumer.provenance import collect
from pumer.reducers import PuMerConfig, config_to_dict
from pumer.stages import Stage, run_stages
from pumer.tasks.statistics import Interval, bootstrap
from pumer.train import TrainConfig
from pumer.train import run as train
from pumer.training.config import OptimizerConfig, TrainingData
from pumer.training.distill import DistillationConfig
from pumer.world import QuestionsConfig, checkpoint_dir, write_vqav2

RESULTS = Path(__file__).parent / "results" / "distillation-rows.json"
REDUCTION = config_to_dict(PuMerConfig.preset("vilt", "vqav2"))
ORIGINAL, UNTUNED = "original", "untuned"
ROWS = {"labels": "labels alone", "distilled": "distilled", "hidden": "distilled, hidden states too"}
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Size:
    """What every run shares.

    Attributes:
        train: Training questions.
        test: Test questions.
        lr: Peak learning rate.
        batch: Questions per step.
        hidden_weight: Of the hidden states in the loss of `hidden`.
        model: Checkpoint that the original starts from.
    """

    train: int = 4000
    test: int = 5100
    lr: float = 3e-5
    batch: int = 32
    hidden_weight: float = 1.0
    model: Path = field(default_factory=lambda: checkpoint_dir("vilt-small"))


def main() -> None:
    """Parse, train, test, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/distillation-rows"), help="models and answers")
    parser.add_argument("--rows", nargs="+", choices=[ORIGINAL, *ROWS], default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS))
    parser.add_argument("--train", type=int, default=Size.train, help="training questions of every run")
    parser.add_argument("--test", type=int, default=Size.test, help="test questions")
    parser.add_argument("--lr", type=float, default=Size.lr, help="peak learning rate")
    parser.add_argument("--hidden-weight", type=float, default=Size.hidden_weight)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    size = Size(given.train, given.test, given.lr, hidden_weight=given.hidden_weight)
    result = run(given.output, size, [row for row in given.rows if row != ORIGINAL], given.seeds, Console())
    if result is not None:
        write_json(given.results, result)
        Console().print(table(result))


def run(folder: Path, size: Size, rows: Sequence[str], seeds: Sequence[int], console: Console) -> dict[str, Any] | None:
    """Do the runs that are asked for; the result if that was all of `ROWS` and `SEEDS`, whoever did the others.

    Args:
        folder: Models and answers.
        size: What every run shares.
        rows: Of `ROWS`; none prepares the original.
        seeds: Of `SEEDS`.
        console: One line per step.
    """
    records = folder / "stages"
    run_stages(_stages(folder, size, rows, seeds), records, console)
    everything = _stages(folder, size, list(ROWS), SEEDS)
    left = [stage.name for stage in everything if not _finished(records / f"{stage.name}.json")]
    if left:
        console.print(f"not done yet: {', '.join(left)}", highlight=False)
        return None
    return _result(folder, size, run_stages(everything, records, console))


def _finished(record: Path) -> bool:
    return record.is_file() and bool(read_json(record)["done"])


def _stages(folder: Path, size: Size, rows: Sequence[str], seeds: Sequence[int]) -> list[Stage]:
    data = QuestionsConfig(train=size.train, val=size.test, heldout=100)
    write = partial(write_vqav2, folder / "world", **to_dict(data))
    stages = [
        Stage("world", "write pictures and questions", to_dict(data), lambda: write() and None),
        _training(ORIGINAL, _recipe(folder, size, ORIGINAL, 0), ["world"]),
        _test(folder, ORIGINAL, ORIGINAL, None, [f"train-{ORIGINAL}"]),
        _test(folder, UNTUNED, ORIGINAL, REDUCTION, [f"test-{ORIGINAL}"]),
    ]
    for seed in seeds:
        for row in rows:
            key = f"{row}-{seed}"
            stages.append(_training(key, _recipe(folder, size, row, seed), [f"train-{ORIGINAL}"]))
            stages.append(_test(folder, key, key, REDUCTION, [f"test-{ORIGINAL}", f"train-{key}"]))
    return stages


def _recipe(folder: Path, size: Size, row: str, seed: int) -> TrainConfig:
    original = str(folder / ORIGINAL)
    first = row == ORIGINAL
    return TrainConfig(
        model=str(size.model) if first else original,
        output=folder / (ORIGINAL if first else f"{row}-{seed}"),
        data=TrainingData(folder / "world", eval=None, min_answer_count=1),
        reduction="none" if first else REDUCTION,
        teacher=original if row in ("distilled", "hidden") else None,
        distillation=DistillationConfig(hidden_weight=size.hidden_weight if row == "hidden" else 0.0),
        optimizer=OptimizerConfig(lr=size.lr, head_factor=1.0),
        epochs=1,
        batch_size=size.batch,
        seed=seed,
        report_to=(),
    )


def _training(key: str, recipe: TrainConfig, after: Sequence[str]) -> Stage:
    def work() -> dict[str, Any]:
        result = train(recipe)
        return {name: result[name] for name in ("steps", "seconds", "loss")}

    return Stage(f"train-{key}", f"fine-tune: {key}", to_dict(recipe), work, after, recipe.output)


def _answers(folder: Path, key: str) -> Path:
    return folder / "answers" / f"{key}.json"


def _test(folder: Path, key: str, model: str, reduction: Any, after: Sequence[str]) -> Stage:
    """Answers of a model to all test questions, beside the original's."""
    settings = EvaluateConfig(
        str(folder / model),
        data=EvaluationData(folder / "world", train=None),
        reduction=reduction or "none",
        per_example=_answers(folder, key),
        against=None if key == ORIGINAL else _answers(folder, ORIGINAL),
    )

    def work() -> dict[str, Any]:
        result = evaluate(settings)
        return {name: result[name] for name in ("accuracy", "difference") if name in result}

    return Stage(f"test-{key}", f"test: {key}", reduction, work, after)


def _result(folder: Path, size: Size, done: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of all rows."""
    original = _scores(folder, ORIGINAL)
    scores = {row: _mean([_scores(folder, f"{row}-{seed}") for seed in SEEDS]) for row in ROWS}
    rows: dict[str, Any] = {}
    for row, mean in scores.items():
        runs = [done[f"test-{row}-{seed}"] for seed in SEEDS]
        means = [each["accuracy"]["mean"] for each in runs]
        rows[row] = {
            "accuracy": asdict(bootstrap(list(mean.values()))),
            "difference": _difference(mean, original),
            "difference_to_labels": None if row == "labels" else _difference(mean, scores["labels"]),
            "agreement": statistics.fmean(each["difference"]["agreement"] for each in runs),
            "deviation_between_seeds": statistics.stdev(means),
            "seeds": dict(zip(map(str, SEEDS), runs, strict=True)),
        }
    return {
        ORIGINAL: done[f"test-{ORIGINAL}"],
        UNTUNED: done[f"test-{UNTUNED}"],
        "rows": rows,
        "provenance": collect({**to_dict(size), "model": size.model.name, "reduction": REDUCTION}),
    }


def _scores(folder: Path, key: str) -> dict[str, float]:
    return {str(entry["id"]): entry["score"] for entry in read_json(_answers(folder, key))["examples"]}


def _mean(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean score of every question over runs."""
    return {number: statistics.fmean(scores[number] for scores in runs) for number in runs[0]}


def _difference(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    return asdict(bootstrap([score - theirs[number] for number, score in ours.items()]))


def table(result: Mapping[str, Any]) -> Table:
    """A line per row: means over seeds, intervals over questions."""
    shown = Table(title=f"small ViLT in the built-in world, {len(SEEDS)} seeds")
    columns = ("", "accuracy", "difference to the original", "agreement", "to labels alone", "between seeds")
    for column in columns:
        shown.add_column(column, justify="left" if not column else "right")
    shown.add_row(ORIGINAL, str(Interval(**result[ORIGINAL]["accuracy"])))
    untuned = result[UNTUNED]["difference"]
    shown.add_row(
        "reduced, not fine-tuned",
        str(Interval(**result[UNTUNED]["accuracy"])),
        str(Interval(**untuned["difference"])),
        f"{100 * untuned['agreement']:.1f}",
    )
    for row, figures in result["rows"].items():
        gain = figures["difference_to_labels"]
        shown.add_row(
            ROWS[row],
            str(Interval(**figures["accuracy"])),
            str(Interval(**figures["difference"])),
            f"{100 * figures['agreement']:.1f}",
            "" if gain is None else str(Interval(**gain)),
            f"{100 * figures['deviation_between_seeds']:.2f}",
        )
    return shown


if __name__ == "__main__":
    main()
