"""Models at full size (384 pixels, 32 words, random weights): `make bench`, `make bench-gpu`.

Random weights will do: speed, memory and arithmetic follow from shapes alone. Writes `<model>-cpu.json` or
`<model>-gpu.json` into `benchmarks/results/`: one result of `pumer benchmark` per number format. Run it on a machine
that is idle otherwise.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pumer import PuMerConfig
from pumer.benchmark import BenchmarkConfig, run
from pumer.checkpoint import read_json, write_json
from pumer.reducers import config_to_dict

RESULTS = Path(__file__).parent / "results"


def _paper(backbone: str, task: str, vision: bool = False) -> dict[str, Any]:
    return config_to_dict(PuMerConfig.preset(backbone, task, vision))


@dataclass(frozen=True)
class Case:
    """A model and what it is compared with.

    Attributes:
        reductions: Name of the row to the reduction.
        batch_sizes: On a CPU; METER takes about a second per example.
        transformers: Whether transformers has the model, so that its own forward is measured as well.
    """

    reductions: dict[str, dict[str, Any]]
    batch_sizes: tuple[int, ...]
    transformers: bool = False


CASES = {
    "vilt-b32": Case(
        {"2,5,8": _paper("vilt", "vqav2"), "2,4,6,8": _paper("vilt", "snli_ve")}, (1, 8), transformers=True
    ),
    "meter-b16": Case(
        {
            "0,2,4,6; 0.2/0.2/0.2": _paper("meter", "vqav2"),
            "0,2,4,6; 0.3/0.5/0.2": _paper("meter", "snli_ve"),
            "0,2,4,6; 0.2/0.2/0.2 + vision": _paper("meter", "vqav2", vision=True),
        },
        (1, 4),
    ),
    "meter-b16-nlvr2": Case({"2,4,6; 0.3/0.5/0.2": _paper("meter", "nlvr2")}, (1, 2)),
}
"""The paper's schedules, and ours inside METER's vision encoder."""


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[*CASES, []], help="default: all of them")
    parser.add_argument("--gpu", action="store_true", help="on one GPU, 30 s per point")
    parser.add_argument("--pairs", type=int, default=20, help="interleaved rounds per point, at least")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    arguments = parser.parse_args()
    for model in arguments.models or CASES:
        results = {dtype: run(settings(model, arguments.gpu, arguments.pairs, dtype)) for dtype in arguments.dtypes}
        path = RESULTS / f"{model}-{'gpu' if arguments.gpu else 'cpu'}.json"
        kept = read_json(path) if path.exists() else {}  # of other number formats; each result says where it comes from
        write_json(path, kept | results)


def settings(model: str, gpu: bool, pairs: int, dtype: str) -> BenchmarkConfig:
    """One benchmark: the reduced models, and transformers' own, against the unreduced one."""
    case = CASES[model]
    return BenchmarkConfig(
        model=f"preset:{model}",
        reductions=case.reductions,
        transformers=case.transformers,
        batch_sizes=(1, 8, 64) if gpu else case.batch_sizes,
        pairs=pairs,
        seconds=30.0 if gpu else 0.0,
        search=gpu,
        search_seconds=30.0,
        memory_batch=64 if gpu else case.batch_sizes[-1],
        dtype=dtype,
        device="cuda" if gpu else "cpu",
    )


if __name__ == "__main__":
    main()
