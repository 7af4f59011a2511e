"""kill -9 at three random moments of a run, one of them inside a save: does the same command end with the same weights?

Fine-tunes the small models that ship with the package, reduced and with augmented images, twice for 300 steps through
`pumer train`: once undisturbed, once killed three times. Compares every weight bit for bit, every logged loss, and what
early stopping remembers. Prints PASS or FAIL, and writes `benchmarks/results/kill-and-resume.json`.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from benchmarks.common import RESULTS, parser
from pumer.settings.common import AugmentConfig
from pumer.settings.train import OptimizerConfig, TrainConfig, TrainingData
from pumer.training.checkpoints import STATE_FILE, last_checkpoint
from pumer.utils.config import to_dict
from pumer.utils.files import read_json, write_json
from pumer.utils.provenance import collect
from pumer.utils.shipped import SMALL
from pumer.world import WorldConfig, write_world

LAYERS = {"vilt-small": [2, 5, 8], "meter-small": [0, 2, 4, 6]}
SAVING = ("_save_optimizer_and_scheduler", "_save_scaler", "_save_rng_state", "save_model")
CHILD = """
import sys
from pumer.cli import main
from pumer.training.trainer import DistillingTrainer

method, step = sys.argv.pop(1), int(sys.argv.pop(1))
original = getattr(DistillingTrainer, method)

def reached(self, *args, **kwargs):
    if self.state.global_step == step:
        print("reached", flush=True)
        sys.stdin.read()
    return original(self, *args, **kwargs)

setattr(DistillingTrainer, method, reached)
main()
"""
"""`pumer` with two more arguments: a method of the trainer, and the step at which it waits there to be killed."""


def main() -> None:
    """Train, kill, compare, write."""
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", default=list(LAYERS), choices=list(LAYERS))
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--every", type=int, default=50, help="steps between two checkpoints")
    options.add_argument("--batch", type=int, default=2)
    options.add_argument("--seed", type=int, default=0, help="of the moments")
    options.add_argument("--out", type=Path, default=RESULTS / "kill-and-resume.json")
    arguments = options.parse_args()
    console, moments = Console(), random.Random(arguments.seed)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_world(folder, WorldConfig(train=400, val=40, heldout=0, test=0, tasks=("vqav2",)))
        for name in arguments.models:
            result[name] = compare(name, Path(folder), arguments, moments)
            console.print(name, result[name])
    same = all(entry["same_weights"] and entry["same_losses"] and entry["same_stopping"] for entry in result.values())
    given = {name: str(value) for name, value in vars(arguments).items()}
    write_json(arguments.out, result | {"pass": same, "provenance": collect(given)})
    console.print("PASS" if same else "FAIL")
    sys.exit(not same)


def compare(name: str, folder: Path, arguments: argparse.Namespace, moments: random.Random) -> dict[str, Any]:
    """Two runs of a model, one of them killed three times, and whether they ended alike."""
    steps, every = arguments.steps, arguments.every
    config = TrainConfig(
        model=str(SMALL[f"small:{name.removesuffix('-small')}"]),
        output=folder / name / "undisturbed",
        data=TrainingData(root=folder / "vqav2", min_answer_count=1),
        reduction={"method": "pumer", "layers": LAYERS[name], "prune_ratio": 0.1, "merge_ratio": 0.3},
        augment=AugmentConfig(),
        optimizer=OptimizerConfig(lr=1e-4),
        batch_size=arguments.batch,
        max_steps=steps,
        eval_steps=every,
        patience=steps // every,
        log_steps=every // 5,
        report_to=(),
    )
    whole = config.output
    pumer(config)
    config = TrainConfig(**{**vars(config), "output": folder / name / "killed"})
    in_steps = [("training_step", moments.randrange(steps)) for _ in range(2)]
    in_save = (moments.choice(SAVING), every * moments.randrange(1, steps // every))
    killed = []
    for method, step in sorted([*in_steps, in_save], key=lambda moment: moment[1]):
        pumer(config, method, step)
        left = last_checkpoint(config.output)
        killed.append({"in": method, "step": step, "goes_on_from": left.name if left else None})
    pumer(config)
    return {
        "steps": steps,
        "killed": killed,
        "same_weights": same_weights(whole, config.output),
        "same_losses": curve(whole) == curve(config.output),
        "same_stopping": stopping(whole) == stopping(config.output),
    }


def pumer(config: TrainConfig, method: str = "training_step", step: int = -1) -> None:
    """Run the command; where a step is given, until it reaches that, then kill -9."""
    recipe = config.output.with_suffix(".yaml")
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(yaml.safe_dump(to_dict(config)))
    command = [sys.executable, "-c", CHILD, method, str(step), "train", str(recipe)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, text=True) as child:
        said = child.stdout.readline() if child.stdout else ""
        if step >= 0:
            child.kill()
        if (said == "reached\n") != (step >= 0):
            raise RuntimeError(f"{' '.join(command)} ended, or went on, unexpectedly: {said}")
        child.communicate()
    if step < 0 and child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}")


def same_weights(left: Path, right: Path) -> bool:
    """Whether all weights of two models are equal, bit for bit."""
    one, other = (load_file(folder / "model.safetensors") for folder in (left, right))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def curve(output: Path) -> list[tuple[int, float]]:
    """Logged losses by step."""
    return [(entry["step"], entry["loss"]) for entry in read_json(output / "run.json")["history"] if "loss" in entry]


def stopping(output: Path) -> dict[str, Any]:
    """What the last checkpoint knows about early stopping."""
    state = read_json(Path(str(last_checkpoint(output))) / STATE_FILE)
    kept = {name: state[name] for name in ("best_metric", "best_global_step", "global_step")}
    return kept | state["stateful_callbacks"]["EarlyStoppingCallback"]["attributes"]


if __name__ == "__main__":
    main()
