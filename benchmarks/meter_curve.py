"""The small METER in the built-in world: accuracy against how much is removed, cross-modal and in the vision encoder.

Fine-tunes the original, then for every schedule distils a reduced model from it and tests it, with and without that
fine-tuning. What is finished is kept: an interrupted run goes on where it was. MACs are those of a full-size METER
(384 pixels, 32 words) with the same ratios; its 11 vision layers are reduced in layers 2, 5 and 8, the small model's 4
in layers 1, 2 and 3. Writes `benchmarks/results/meter-curve.json` and `docs/images/meter-curve.png`.
"""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from rich.console import Console

from pumer.checkpoint import write_json
from pumer.config import to_dict
from pumer.evaluate import EvaluateConfig, EvaluationData
from pumer.evaluate import run as evaluate
from pumer.measuring.named_models import skeleton
from pumer.patching import patch
from pumer.planning import plan
from pumer.provenance import collect
from pumer.reducers import PuMerConfig, Step, config_to_dict
from pumer.stages import Stage, run_stages
from pumer.train import TrainConfig
from pumer.train import run as train
from pumer.training.config import OptimizerConfig, TrainingData
from pumer.world import QuestionsConfig, checkpoint_dir, write_vqav2

ROOT = Path(__file__).parent.parent
LAYERS = (0, 2, 4, 6)
VISION_SMALL, VISION_FULL = (1, 2, 3), (2, 5, 8)


@dataclass(frozen=True)
class Point:
    """A schedule: the same ratios in all reducing layers of a stack."""

    prune_ratio: float
    merge_ratio: float
    vision_merge_ratio: float = 0.0
    text_merge_ratio: float = 0.2

    @property
    def key(self) -> str:
        """Of its files."""
        return f"p{self.prune_ratio}-m{self.merge_ratio}-v{self.vision_merge_ratio}"

    @property
    def name(self) -> str:
        """As in the paper's tables: pruned / merged / words merged."""
        said = f"{self.prune_ratio}/{self.merge_ratio}/{self.text_merge_ratio}"
        return f"{said} + vision {self.vision_merge_ratio}" if self.vision_merge_ratio else said

    def config(self, vision: tuple[int, ...]) -> PuMerConfig:
        """The reduction, in these layers of a vision encoder."""
        fusion = PuMerConfig(
            layers=LAYERS,
            prune_ratio=self.prune_ratio,
            merge_ratio=self.merge_ratio,
            text_merge_ratio=self.text_merge_ratio,
        )
        if not self.vision_merge_ratio:
            return fusion
        steps = [Step(stack="vision", layer=layer, merge_ratio=self.vision_merge_ratio) for layer in vision]
        return PuMerConfig(schedule=(*steps, *fusion.schedule))


POINTS = (
    Point(0.1, 0.1),
    Point(0.2, 0.2),
    Point(0.3, 0.5),
    Point(0.2, 0.2, 0.1),
    Point(0.2, 0.2, 0.2),
    Point(0.2, 0.2, 0.3),
)


@dataclass(frozen=True)
class Size:
    """Questions per run."""

    train: int = 4000
    test: int = 5100
    lr: float = 1e-4


def main() -> None:
    """Parse, train, test, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/meter-curve"), help="models and answers")
    parser.add_argument("--train", type=int, default=Size.train, help="training questions of every run")
    parser.add_argument("--test", type=int, default=Size.test, help="test questions")
    parser.add_argument("--lr", type=float, default=Size.lr, help="peak learning rate")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "meter-curve.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "meter-curve.png")
    arguments = parser.parse_args()
    size, folder = Size(arguments.train, arguments.test, arguments.lr), arguments.output
    done = run_stages(_stages(folder, size), folder / "stages", Console())
    full = _full_size_macs()
    rows = [{"name": "original", "macs": full["unreduced"], "distilled": done["test-original"]}]
    for point in POINTS:
        tests = {kind: done[f"test-{point.key}-{kind}"] for kind in ("untuned", "distilled")}
        rows.append({"name": point.name, "macs": full[point.name], **tests})
    write_json(arguments.results, {"rows": rows, "provenance": collect(size)})
    draw(rows, arguments.picture)


def _stages(folder: Path, size: Size) -> list[Stage]:
    world, original = folder / "world", folder / "original"
    data = QuestionsConfig(train=size.train, val=size.test, heldout=100)
    write = partial(write_vqav2, world, **to_dict(data))
    stages = [
        Stage("world", "write pictures and questions", to_dict(data), lambda: write() and None),
        _training("original", "none", None, folder, size),
        Stage("test-original", "test: original", None, partial(_test, folder, original, None), ["train-original"]),
    ]
    for point in POINTS:
        reduction = config_to_dict(point.config(VISION_SMALL))
        stages.append(_training(point.key, reduction, original, folder, size))
        for kind, model in (("untuned", original), ("distilled", folder / point.key)):
            title = f"test: {point.name}, {kind}"
            needed = ["test-original", f"train-{model.name}"]
            stages.append(
                Stage(f"test-{point.key}-{kind}", title, reduction, partial(_test, folder, model, reduction), needed)
            )
    return stages


def _training(key: str, reduction: Any, teacher: Path | None, folder: Path, size: Size) -> Stage:
    recipe = TrainConfig(
        model=str(teacher or checkpoint_dir("meter-small")),
        output=folder / key,
        data=TrainingData(folder / "world", eval=None, min_answer_count=1),
        reduction=reduction,
        teacher=None if teacher is None else str(teacher),
        optimizer=OptimizerConfig(lr=size.lr, head_factor=1.0),
        epochs=1,
        batch_size=32,
        report_to=(),
    )

    def work() -> dict[str, Any]:
        result = train(recipe)
        return {name: result[name] for name in ("steps", "seconds", "samples_per_second", "loss")}

    after = ["world"] if teacher is None else ["train-original"]
    return Stage(f"train-{key}", f"fine-tune: {key}", to_dict(recipe), work, after, folder / key)


def _test(folder: Path, model: Path, reduction: Any) -> dict[str, Any]:
    """Accuracy, beside the original's."""
    original = folder / "original.json"
    settings = EvaluateConfig(
        str(model),
        data=EvaluationData(folder / "world", train=None),
        reduction=reduction or "none",
        per_example=None if reduction else original,
        against=original if reduction else None,
    )
    return evaluate(settings)


def _full_size_macs() -> dict[str, float]:
    """MACs of a full-size METER with the same ratios."""
    with torch.device("meta"):
        model = skeleton("preset:meter-b16")
    macs = {}
    for point in POINTS:
        planned = plan(patch(model, point.config(VISION_FULL)), 384, 32)
        macs |= {point.name: planned.macs, "unreduced": planned.macs_unreduced}
    return macs


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against MACs: cross-modal layers alone and with the vision encoder, with and without fine-tuning."""
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=150)
    original, *reduced = rows
    looks = {
        ("distilled", False): ("#6a269e", "-", "cross-modal layers, distilled"),
        ("untuned", False): ("#6a269e", ":", "cross-modal layers, not fine-tuned"),
        ("distilled", True): ("#f0761e", "-", "and the vision encoder, distilled"),
        ("untuned", True): ("#f0761e", ":", "and the vision encoder, not fine-tuned"),
    }
    for (kind, vision), (colour, line, label) in looks.items():
        shown = [row for row in reduced if ("vision" in row["name"]) == vision]
        points = [(row["macs"] / 1e9, row[kind]["accuracy"]) for row in shown]
        points = sorted([(original["macs"] / 1e9, original["distilled"]["accuracy"]), *points], key=lambda p: p[0])
        means = [100 * accuracy["mean"] for _, accuracy in points]
        spread = [[100 * abs(accuracy[end] - accuracy["mean"]) for _, accuracy in points] for end in ("low", "high")]
        axes.errorbar([macs for macs, _ in points], means, spread, fmt=f"o{line}", color=colour, label=label, capsize=2)
    axes.set_xlabel("multiply-accumulates of a full-size METER with these ratios, 10^9")
    axes.set_ylabel("accuracy of the small METER, %")
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    main()
