"""Speed and memory on this CPU, of models at full size (384 pixels, 32 words) and of the small ones: `make bench`.

The full-size models have random weights: speed, memory and arithmetic follow from shapes alone. Writes
`<model>-cpu.json` into `benchmarks/results/`: one result of `pumer benchmark` per number format. Beside every schedule
of `rows.py` stands its limit, the scheduled numbers of tokens by plain slices. Beside the batch as a whole, `sliced`
has it in slices. Run it on a machine that is idle otherwise. For a GPU: `benchmarks/gpu.py`.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, parser
from benchmarks.rows import CASES, Case, row_model, sizes, sliced_rows
from pumer.profiling.benchmark import run
from pumer.profiling.inputs import inputs_for
from pumer.profiling.named_models import model_from
from pumer.profiling.peak_memory import Job, peak_memory
from pumer.profiling.timing import compare, reason
from pumer.settings.benchmark import BenchmarkConfig
from pumer.utils.files import read_json, write_json

DEFAULT = ("vilt-b32", "meter-b16", "meter-b16-nlvr2", "vilt-small")


def main() -> None:
    """Parse, measure, write."""
    options = parser(__doc__)
    options.add_argument("models", nargs="*", choices=[*CASES, []], help=f"default: {', '.join(DEFAULT)}")
    options.add_argument("--pairs", type=int, default=20, help="interleaved rounds per point, at least")
    options.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    arguments = options.parse_args()
    for model in arguments.models or DEFAULT:
        path = arguments.results / f"{model}-cpu.json"
        for dtype in arguments.dtypes:
            result = measured(CASES[model], arguments.pairs, dtype)
            kept = read_json(path) if path.exists() else {}  # other number formats; each result has its provenance
            write_json(path, kept | {dtype: result})


def measured(case: Case, pairs: int, dtype: str) -> dict[str, Any]:
    """Everything about a model in one number format."""
    result = run(settings(case, pairs, dtype))
    if case.sliced_batch:
        result["sliced"] = sliced(case, max(pairs // 4, 1), dtype)
    return result


def settings(case: Case, pairs: int, dtype: str) -> BenchmarkConfig:
    """One benchmark: the reduced models, their limits and transformers' own, against the unreduced one."""
    return BenchmarkConfig(
        model=case.model,
        reductions=case.reductions,
        transformers=case.transformers,
        batch_sizes=case.batch_sizes,
        pairs=pairs,
        memory_batch=case.memory_batch,
        dtype=dtype,  # type: ignore[arg-type]
        device="cpu",
    )


def sliced(case: Case, pairs: int, dtype: str) -> dict[str, Any]:
    """Time (see `pumer.profiling.timing.compare`) and peak memory of inference, with and without slices."""
    base = model_from(case.model).to(dtype=getattr(torch, dtype))
    failed: dict[str, str] = {}
    models, memory = {}, {}
    for row in sliced_rows(case):
        try:
            models[row.name] = row_model(base, row.reduction, row.slice_size)
            job = Job(case.model, row.reduction, case.sliced_batch, dtype=dtype, slice_size=row.slice_size)
            memory[row.name] = peak_memory(job)
        except Exception as error:
            failed[row.name] = reason(error)
    make = partial(inputs_for, base, *sizes(case, base))
    speed = compare(models, make, [case.sliced_batch], pairs=pairs, warm_up=1, failures=failed) if models else {}
    return {"batch": case.sliced_batch, "memory": memory, "speed": speed, "failed": failed}


if __name__ == "__main__":
    main()
