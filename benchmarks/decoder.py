"""Reduction of a generative model's prompts: prefill, decoding and cache beside what they should be.

Random weights: speed, memory and arithmetic follow from shapes alone. Measured are transformers' own forward, the
patched model that reduces nothing, FastV, PyramidDrop and PuMer inside the decoder, and DivPrune and CDPruner before
it, in interleaved rounds; beside each speed-up stands the ideal one, that of the MACs, and beside each cache the
planned one. Writes `decoder-PRESET-DEVICE.json`, after
every point. Run it on a machine that is idle otherwise. A GPU:

    python -m benchmarks.decoder --preset qwen2.5-vl-3b --device cuda --dtype bfloat16 \
        --image-tokens 1000 2000 4000 --batches 1 16
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common import RESULTS, parser
from pumer.profiling.generation import CHOOSING, DECODE, DECODER, STAGES
from pumer.profiling.generation_benchmark import TRANSFORMERS, UNREDUCED, run
from pumer.profiling.generative_presets import CONFIGS
from pumer.profiling.prompt_planning import MIB
from pumer.profiling.timing import reason, release_memory
from pumer.settings.benchmark import BenchmarkConfig
from pumer.utils.files import read_json, write_json

LEAST_DECODE = 0.98
"""Of transformers' own speed, that generating a token must keep."""
LEAST_PREFILL = 0.95
"""Of the ideal speed-up, that the decoder must reach on a prompt."""


def main() -> None:
    """Parse, measure, write, print."""
    options = parser(__doc__)
    options.add_argument("--preset", choices=CONFIGS, default="llava-0.1b")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    options.add_argument("--text-tokens", type=int, default=64)
    options.add_argument("--image-tokens", type=int, nargs="+", default=[576])
    options.add_argument("--batches", type=int, nargs="+", default=[1])
    options.add_argument("--new-tokens", type=int, default=16, help="that are generated in a round")
    options.add_argument("--pairs", type=int, default=9, help="interleaved rounds per point, at least")
    options.add_argument("--threads", type=int, default=1, help="of the CPU")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    options.add_argument("--commit", help="of the source, where git cannot tell")
    arguments = options.parse_args()
    path = arguments.results / f"decoder-{arguments.preset}-{arguments.device}.json"
    for batch in arguments.batches:
        for image_tokens in arguments.image_tokens:
            name = f"{arguments.dtype}, {image_tokens} image tokens, batch {batch}"
            result = measured(arguments, image_tokens, batch)
            kept = read_json(path) if path.exists() else {}  # other points; each has its provenance
            write_json(path, kept | {name: result})
            sys.stdout.write("\n".join([name, *table(result), ""]))
            sys.stdout.flush()


def reductions(preset: str) -> dict[str, dict[str, Any]]:
    """Methods by name: FastV as published, the others after each quarter of the layers but the last, or before them."""
    depth = CONFIGS[preset][1]["text_config"]["num_hidden_layers"]
    layers = [depth * quarter // 4 - 1 for quarter in (1, 2, 3)]
    steps = [{"stack": "decoder", "layer": layer, "prune_ratio": 0.2, "merge_ratio": 0.3} for layer in layers]
    fastv = {"method": "fastv", "layers": [1], "prune_ratio": 0.5}
    return {
        "FastV, 1; 0.5": fastv,
        f"PyramidDrop, {_listed(layers)}; 0.5": {"method": "pyramiddrop", "layers": layers, "prune_ratio": 0.5},
        f"PuMer, {_listed(layers)}; 0.2 + 0.3": {"method": "pumer", "schedule": steps},
        "DivPrune; 0.75": {"method": "divprune", "prune_ratio": 0.75},
        "CDPruner; 0.75": {"method": "cdpruner", "prune_ratio": 0.75},
        "DivPrune; 0.5, FastV, 1; 0.5": fastv | {"before": {"method": "divprune", "prune_ratio": 0.5}},
    }


def _listed(layers: list[int]) -> str:
    return ",".join(map(str, layers))


def measured(arguments: Any, image_tokens: int, batch: int) -> dict[str, Any]:
    """The result of `pumer benchmark` for one prompt and batch, or the reason why there is none."""
    config = BenchmarkConfig(
        model=f"preset:{arguments.preset}",
        reductions=reductions(arguments.preset),
        text_tokens=arguments.text_tokens,
        image_tokens=image_tokens,
        new_tokens=arguments.new_tokens,
        batch_sizes=(batch,),
        memory_batch=batch,
        pairs=arguments.pairs,
        threads=arguments.threads,
        dtype=arguments.dtype,
        device=arguments.device,
        progress=False,
    )
    try:
        result = run(config, Console(quiet=True))
    except Exception as error:
        return {"failed": reason(error)}
    finally:
        release_memory()
    if arguments.commit:
        result["provenance"]["commit"] = arguments.commit
    return result


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """Lines for the terminal."""
    if "failed" in result:
        yield f"failed: {result['failed']}"
        return
    (point,) = result["points"]
    yield (
        f"{'':30} {'first':>7} {'encoded':>7} {'decoder':>7} {'ideal':>6} {'token':>15} {'cache, MiB':>13} "
        f"{'peak':>6} choosing"
    )
    for name, planned in result["plan"].items():
        first, encoded, decoder, token = (point[stage][name]["speedup"]["median"] for stage in STAGES)
        seconds = point[DECODE][name]["seconds"]["median"]
        cache = f"{point['cache_bytes'][name] / MIB:.1f}/{planned['cache_bytes'] * point['batch'] / MIB:.1f}"
        choosing = point[CHOOSING].get(name)
        yield (
            f"{name:30} {first:>6.2f}x {encoded:>6.2f}x {decoder:>6.2f}x {planned['ideal_speedup']:>5.2f}x "
            f"{1e3 * seconds:>7.2f} ms {token:.2f}x {cache:>13} {result['memory'][name]['activations'] / MIB:>6.0f}"
            + (f" {1e3 * choosing['seconds']['median']:>5.1f} ms" if choosing else "")
        )
    yield from missed(result)


def missed(result: Mapping[str, Any]) -> Iterator[str]:
    """What is slower than it should be."""
    (point,) = result["points"]
    for name, planned in result["plan"].items():
        if name == TRANSFORMERS:
            continue
        prefill, token = (point[stage][name]["speedup"]["median"] for stage in (DECODER, DECODE))
        if token < LEAST_DECODE:
            yield f"{name}: a token is generated at {token:.3f} of transformers' speed, less than {LEAST_DECODE}"
        if name != UNREDUCED and prefill < LEAST_PREFILL * planned["ideal_speedup"]:
            share = prefill / planned["ideal_speedup"]
            yield f"{name}: the decoder reaches {share:.3f} of its ideal speed-up, less than {LEAST_PREFILL}"


if __name__ == "__main__":
    main()
