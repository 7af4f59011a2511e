"""What reading costs: images per second of one core, the share of training spent waiting, the memory of `prepare`.

On the built-in world's files, which `pumer data world out/world` writes. Trains the small ViLT for some steps from the
official files and from what `pumer data prepare` made of them, and prepares data sets of different size, each in a
process of its own. Writes `benchmarks/results/reading-<device>.json`.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common import RESULTS, parser
from pumer.data.storage import RECORD
from pumer.settings.data import CheckConfig
from pumer.settings.train import OptimizerConfig, TrainConfig, TrainingData
from pumer.tasks import check
from pumer.training import run as train
from pumer.utils.files import read_json, write_json
from pumer.utils.provenance import collect
from pumer.utils.shipped import SMALL
from pumer.utils.tensors import best_device

EDGE = 96
TASKS = ("vqav2", "nlvr2", "snli_ve")
_PREPARE = """
import sys
from pumer.cli import app
from pumer.profiling.peak_memory import peak_since
app(["data", "prepare", *sys.argv[1:]], standalone_mode=False)
print(peak_since("cpu"))
"""
"""Told by the process itself: what its parent sees includes the memory of the parent before the child began."""


def main() -> None:
    """Parse, measure, write."""
    options = parser(__doc__)
    options.add_argument("--world", type=Path, default=Path("out/world"))
    options.add_argument("--steps", type=int, default=40, help="of each training")
    options.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    options.add_argument("--out", type=Path, default=RESULTS / f"reading-{best_device().type}.json")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = {task: measure(arguments.world / task, task, Path(folder), arguments.steps) for task in arguments.tasks}
    write_json(arguments.out, {"tasks": rows, "provenance": collect({"steps": arguments.steps, "edge": EDGE})})
    Console().print(rows)


def measure(root: Path, task: str, folder: Path, steps: int) -> dict[str, Any]:
    """A task's row: images, reading and waiting from both kinds of files, and `prepare`'s peak memory in MiB."""
    prepared = folder / task
    peak = peak_of_prepare(task, root, prepared)
    row: dict[str, Any] = {"images": read_json(prepared / RECORD)["images"], "prepare_peak_mib": peak}
    for name, data in {"files": root, "prepared": prepared}.items():
        found = check.run(CheckConfig(task=task, root=data, splits=("val",), speed=True, edge=EDGE), progress=False)
        row[name] = {"images_per_second": found["images_per_second"]}
        row[name] |= waiting(task, data, folder / f"{task}-{name}", steps)
    return row


def waiting(task: str, root: Path, output: Path, steps: int) -> dict[str, float]:
    """Share of a training's time that it waited for examples, without workers, and examples per second."""
    config = TrainConfig(
        model=str(SMALL["small:vilt"]),
        output=output,
        data=TrainingData(root=root, eval=None),
        task=task,
        optimizer=OptimizerConfig(lr=1e-5),
        max_steps=steps,
        batch_size=32,
        report_to=(),
    )
    found = train.run(config, progress=False)
    return {
        "waiting_share": found["input_seconds"] / found["seconds"],
        "examples_per_second": found["samples_per_second"],
    }


def peak_of_prepare(task: str, root: Path, out: Path) -> float:
    """Peak resident memory of `pumer data prepare` in MiB, with all that it imports."""
    command = [sys.executable, "-c", _PREPARE, task, str(root), str(out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"`pumer data prepare {task}` failed")
    return int(done.stdout.splitlines()[-1]) / 2**20


if __name__ == "__main__":
    main()
