"""Exported models beside PyTorch on this CPU: ViLT-B/32 and METER-B/16 at full size (384 pixels, 32 words).

The models have random weights: speed follows from shapes alone. PyTorch and OpenVINO, float32 and bfloat16, and
OpenVINO in int8 (calibrated on random inputs), unreduced and reduced, run in turn in one process; speed-ups are against
unreduced PyTorch in float32. Writes `benchmarks/results/exported-cpu.json`, which names the processor and what it has
for bfloat16 and int8. Run it on a machine that is idle otherwise.
"""

import copy
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import pumer
from benchmarks.common import RESULTS, parser
from benchmarks.rows import SCHEDULES
from pumer import NoReduction
from pumer.exporting.benchmark import inputs_of
from pumer.exporting.runtime import ExportedModel
from pumer.exporting.session import Program
from pumer.profiling.inputs import inputs_for
from pumer.profiling.named_models import model_from, variant
from pumer.profiling.timing import compare
from pumer.reducers import reduction_from
from pumer.utils.files import read_json, write_json
from pumer.utils.provenance import collect

PRESETS = {"vilt-b32": ("vilt", "2,5,8"), "meter-b16": ("meter", "0,2,4,6; 0.2/0.2/0.2 + vision")}
"""Models, each with its reduction: all its programs are open at once."""
WORDS = 32
CALIBRATION = 8
"""Random inputs that set the ranges of int8 programs."""
UNREDUCED = "unreduced"
BASELINE = f"PyTorch f32, {UNREDUCED}"


def main() -> None:
    """Parse, measure, write."""
    options = parser(__doc__)
    options.add_argument("models", nargs="*", choices=[*PRESETS, []], help="both by default")
    options.add_argument("--pairs", type=int, default=20, help="interleaved rounds per point, at least")
    options.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = options.parse_args()
    path = arguments.results / "exported-cpu.json"
    for name in arguments.models or PRESETS:
        family, schedule = PRESETS[name]
        schedules = {schedule: SCHEDULES[family][schedule]}
        result = measured(f"preset:{name}", schedules, arguments.pairs, arguments.batches)
        write_json(path, (read_json(path) if path.exists() else {}) | {name: result})
        Console().print(table(name, result))


def measured(model: str, schedules: dict[str, Any], pairs: int, batches: list[int]) -> dict[str, Any]:
    """Speed (see `pumer.profiling.timing.compare`), ideal speed-ups and differences of every row of a model."""
    base, threads = model_from(model), torch.get_num_threads()
    half, size = copy.deepcopy(base).to(torch.bfloat16), base.config.image_size
    configs = {UNREDUCED: NoReduction()} | {name: reduction_from(value) for name, value in schedules.items()}
    words = min(WORDS, base.config.max_position_embeddings)
    torches = {"f32": base, "bf16": half}
    makers = {name: partial(inputs_for, each, size, words) for name, each in torches.items()}
    models: dict[str, Any] = {}
    make: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    macs: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, config in configs.items():
            for precision, each in torches.items():
                models[f"PyTorch {precision}, {name}"] = variant(each, config)
                make[f"PyTorch {precision}, {name}"] = makers[precision]
            reduced, out = variant(base, config), Path(folder, str(len(macs)))
            macs[name] = pumer.plan(reduced, size, words).macs
            differences[name] = pumer.export(reduced, out, text_length=words)["differences"]
            eighth, calibration = Path(folder, f"{out.name}-int8"), [makers["f32"](CALIBRATION)]
            pumer.export(reduced, eighth, precision="int8", calibration=calibration, text_length=words)
            for precision in (*torches, "int8"):
                exported = ExportedModel(eighth if precision == "int8" else out, threads, precision)
                models[f"OpenVINO {precision}, {name}"] = Program(exported)
                make[f"OpenVINO {precision}, {name}"] = partial(inputs_of, exported, words)
        speed = compare(models, make, batches, pairs)
    return {
        "what": f"{model}, {size} pixels, {words} words",
        "speed": speed,
        "ideal": {name: macs[UNREDUCED] / each for name, each in macs.items()},
        "differences": differences,
        "features": features(),
        "provenance": collect({"pairs": pairs, "batches": batches}),
    }


def features() -> list[str]:
    """What the processor has for bfloat16, float16 and int8, as Linux names it."""
    path = Path("/proc/cpuinfo")
    flags = set(path.read_text().split()) if path.is_file() else set()
    wanted = {"amx_bf16", "amx_fp16", "amx_int8", "amx_tile", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni"}
    return sorted(flags & (wanted | {"avx512f", "avx2"}))


def table(name: str, result: dict[str, Any]) -> Table:
    """Speed-ups of a model."""
    features = ", ".join(result["features"])
    shown = Table("batch", "model", "ms", "speed-up", "quartiles", title=f"{name}, {result['provenance']['device']}")
    shown.caption = f"with {features}" if features else None
    for point in result["speed"]["points"]:
        for row, timed in point["models"].items():
            seconds, speedup = timed["seconds"]["median"], timed["speedup"]
            spread = f"{speedup['low']:.2f}-{speedup['high']:.2f}"
            shown.add_row(str(point["batch"]), row, f"{1e3 * seconds:.1f}", f"{speedup['median']:.2f}x", spread)
        shown.add_section()
    return shown


if __name__ == "__main__":
    main()
