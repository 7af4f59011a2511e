"""Speed, memory and launches on one GPU, in eight minutes: `make bench-gpu`.

Models at full size with random weights, 384 pixels, 32 words. Speed-ups are medians of ratios within interleaved
rounds, against the unreduced model in the same mode (eager, CUDA graphs, inductor), in fp32 without TF32 and in bf16.
Beside every schedule stands its limit: the scheduled numbers of tokens by plain slices. A row that fails is noted with
its reason. Each part writes `benchmarks/results/gpu/PART.json` as it goes, so that whatever ends the program, what is
measured is kept; parts that have a file there are in the table as well.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks import gpu_parts, gpu_table
from benchmarks.common import RESULTS, parser
from benchmarks.deadline import OutOfTime, time_limit
from benchmarks.gpu_parts import Settings
from pumer.profiling.timing import reason, release_memory
from pumer.utils.files import read_json, write_json
from pumer.utils.provenance import collect

Measure = Callable[[Settings], Iterator[dict[str, Any]]]
PARTS: dict[str, tuple[Measure, float]] = {
    "vilt": (partial(gpu_parts.inference, "vilt"), 130),
    "meter": (partial(gpu_parts.inference, "meter"), 120),
    "training": (gpu_parts.training, 30),
    "memory": (gpu_parts.memory, 25),
    "reduction": (gpu_parts.reduction, 45),
    "inductor": (gpu_parts.inductor, 90),
}
"""What a part measures, and its share of the time. What one leaves over, the next ones share."""
RESERVE = 15.0
"""Seconds for the end."""
LONGEST_START = 120.0
"""Seconds that importing takes at most; a process that seems older than that has a wrong clock."""


def main() -> None:
    """Parse, measure, write, print."""
    options = parser(__doc__)
    options.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options.add_argument("--minutes", type=float, default=8.0, help="from the start of the process to its end")
    options.add_argument("--seconds", type=float, default=1.5, help="least time per point")
    options.add_argument("--pairs", type=int, default=7, help="interleaved rounds per point, at least")
    options.add_argument("--compile-seconds", type=float, default=50.0, help="for the compilation of one row")
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--tiny", action="store_true", help="the small models in small batches, to try the program")
    options.add_argument("--results", type=Path, default=RESULTS / "gpu", help="folder of the result files")
    options.add_argument("--commit", help="of the source, where git cannot tell")
    arguments = options.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU; give --device cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    settings = Settings(arguments.device, arguments.tiny, arguments.seconds, arguments.pairs, arguments.compile_seconds)
    end = _started() + 60 * arguments.minutes - RESERVE
    for number, name in enumerate(arguments.parts):
        shares = [PARTS[other][1] for other in arguments.parts[number:]]
        seconds = (end - time.time()) * shares[0] / sum(shares)
        run(name, settings, seconds, arguments.results, arguments.commit)
        release_memory()
    found = {name: arguments.results / f"{name}.json" for name in PARTS}
    sys.stdout.write(gpu_table.table({name: read_json(path) for name, path in found.items() if path.exists()}))


def run(name: str, settings: Settings, seconds: float, folder: Path, commit: str | None = None) -> None:
    """Measure one part and write its file after every point.

    Args:
        name: Of `PARTS`.
        settings: How.
        seconds: After which it is ended.
        folder: Of the result files.
        commit: Of the source; None: asked from git.
    """
    result: dict[str, Any] = {"part": name, "points": [], "stopped": None}
    result["provenance"] = collect(asdict(settings), "bfloat16, float32")
    result["provenance"] |= {"commit": commit} if commit else {}
    start = time.monotonic()

    def keep() -> None:
        result["seconds"] = time.monotonic() - start
        write_json(folder / f"{name}.json", result)

    try:
        with time_limit(seconds, OutOfTime()):
            for point in PARTS[name][0](settings):
                result["points"].append(point)
                keep()
                _say(f"{name}: {gpu_table.heading(point)}, {result['seconds']:.0f} s")
    except OutOfTime:
        result["stopped"] = f"out of time after {seconds:.0f} s"
    except Exception as error:
        result["stopped"] = reason(error)
    keep()
    _say(f"{name}: {result['stopped'] or 'done'}, {result['seconds']:.0f} s")


def _started() -> float:
    """When this process started; where the system's clocks disagree, a guess of what importing takes."""
    now = time.time()
    started = psutil.Process().create_time()
    return started if now - LONGEST_START < started <= now else now - RESERVE


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
