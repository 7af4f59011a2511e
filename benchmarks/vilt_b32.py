"""ViLT-B/32 at full size (384 pixels, 32 words, random weights): `make bench`, `make bench-gpu`.

Random weights will do: speed, memory and arithmetic follow from shapes alone. Writes `vilt-b32-cpu.json` or
`vilt-b32-gpu.json` into `benchmarks/results/`: one result of `pumer benchmark` per number format. Run it on a machine
that is idle otherwise.
"""

import argparse
from pathlib import Path

from pumer.benchmark import BenchmarkConfig, run
from pumer.checkpoint import read_json, write_json

RESULTS = Path(__file__).parent / "results"
RATIOS = {"prune_ratio": 0.1, "merge_ratio": 0.3, "text_merge_ratio": 0.2}
SCHEDULES = {"2,5,8": (2, 5, 8), "2,4,6,8": (2, 4, 6, 8)}
"""Of the paper: VQAv2, NLVR2 and retrieval; entailment."""


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="on one GPU, 30 s per point")
    parser.add_argument("--pairs", type=int, default=20, help="interleaved rounds per point, at least")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    arguments = parser.parse_args()
    results = {dtype: run(settings(arguments.gpu, arguments.pairs, dtype)) for dtype in arguments.dtypes}
    path = RESULTS / f"vilt-b32-{'gpu' if arguments.gpu else 'cpu'}.json"
    kept = read_json(path) if path.exists() else {}  # of other number formats; each result says where it comes from
    write_json(path, kept | results)


def settings(gpu: bool, pairs: int, dtype: str) -> BenchmarkConfig:
    """One benchmark: three models against the unreduced one."""
    return BenchmarkConfig(
        model="preset:vilt-b32",
        reductions={name: {"method": "pumer", "layers": layers, **RATIOS} for name, layers in SCHEDULES.items()},
        batch_sizes=(1, 8, 64) if gpu else (1, 8),
        pairs=pairs,
        seconds=30.0 if gpu else 0.0,
        search=gpu,
        search_seconds=30.0,
        memory_batch=64 if gpu else 8,
        dtype=dtype,
        device="cuda" if gpu else "cpu",
    )


if __name__ == "__main__":
    main()
