"""`pumer benchmark`: speed, memory and arithmetic of a model beside its unreduced self, on the machine at hand."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console, Group
from rich.table import Table
from torch import nn
from transformers import PreTrainedModel

from pumer.backbones.image_size import set_image_size
from pumer.compiling.buckets import Buckets
from pumer.compiling.compile import compile
from pumer.patching import reduction
from pumer.profiling import generation_benchmark
from pumer.profiling.inputs import inputs_for
from pumer.profiling.limit import measured_reduction
from pumer.profiling.named_models import default_image_size, default_text_length, generates, model_from, variant
from pumer.profiling.peak_memory import Job, peak_memory
from pumer.profiling.planning import plan
from pumer.profiling.reporting import chosen_device, finished, narrow_table
from pumer.profiling.timing import compare, fastest_batch, time_split
from pumer.reducers import NoReduction, ReductionConfig, config_to_dict
from pumer.settings.benchmark import BenchmarkConfig
from pumer.utils.errors import InputError
from pumer.utils.locks import exclusive
from pumer.utils.progress import progress_bar
from pumer.utils.shipped import name_of

logger = logging.getLogger(__name__)

UNREDUCED, REDUCED, TRANSFORMERS = "unreduced", "reduced", "transformers"
_ADDED = "give 'reductions={mine: {method: tome, layers: [2, 5, 8], merge_count: 13}}' to measure others beside it"


@exclusive
def run(config: BenchmarkConfig, console: Console | None = None) -> dict[str, Any]:
    """Measure, show a table and write the result.

    Args:
        config: What to measure.
        console: Where the table goes; stdout by default.

    Returns:
        ``speed`` (see `pumer.profiling.timing.compare`), ``fastest`` (see `fastest_batch`), ``memory``, ``split`` (see
        `time_split`; seconds at the largest batch size), ``plan`` (MACs and tokens), each by model name; ``rows`` as
        `pumer.demo.report` takes them; ``provenance``. Of a model that generates: see
        `pumer.profiling.generation_benchmark.run`.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda' but torch sees no GPU; give device=cpu")
    generative = generates(config.model)
    config.check_kind(generative)
    if generative:
        return generation_benchmark.run(config, console)
    device = chosen_device(config)
    base = model_from(config.model).to(device=device, dtype=getattr(torch, config.dtype))
    size = config.image_size or default_image_size(config.model, base)
    set_image_size(config.image_size, base)
    rows = _rows(config, base, size)
    models = {name: _variant(base, row) for name, row in rows.items()}
    length = config.text_length or default_text_length(config.model, base)
    makers = {row.size: partial(inputs_for, base, row.size, length) for row in rows.values()}
    make_inputs = {name: makers[row.size] for name, row in rows.items()}
    plans = {name: plan(model, rows[name].size, length) for name, model in models.items()}
    name = name_of(config.model)
    result: dict[str, Any] = {
        "what": f"{name}, {size} pixels, {length} words, {config.dtype}{', compiled' * config.compile}",
        "plan": {
            name: {
                "macs": planned.macs,
                "ideal_speedup": plans[UNREDUCED].macs / planned.macs,
                "tokens": [(row.short_name, row.text_tokens_out, row.image_tokens_out) for row in planned.layers],
            }
            for name, planned in plans.items()
        },
    }
    if config.memory_batch and device.type in ("cpu", "cuda"):  # first: too large a batch fails here
        result["memory"] = _memory(config, rows, device.type, length)
    fast = _compiled(models) if config.compile else models
    result["speed"] = _speed(config, fast, make_inputs)
    largest = max(config.batch_sizes)
    if config.search:
        result["fastest"] = {
            name: fastest_batch(model, make_inputs[name], largest, max(4096, largest), config.search_seconds)
            for name, model in fast.items()
        }
    result["split"] = {
        name: time_split(model, make_inputs[name](largest)) for name, model in models.items() if name != TRANSFORMERS
    }
    result["rows"] = [_row(name, result) for name in models]
    return finished(result, config, device, tables, console)


@dataclass(frozen=True)
class _Row:
    """What is measured: a reduction (None: transformers' own forward), and pixels along a side of the images."""

    reduction: ReductionConfig | None
    size: int


def _rows(config: BenchmarkConfig, base: PreTrainedModel, size: int) -> dict[str, _Row]:
    """What is measured, the unreduced fast path first."""
    rows = {UNREDUCED: _Row(NoReduction(), size)}
    saved = reduction(base)
    if config.reductions:
        rows |= {name: _row_from(name, value, size) for name, value in config.reductions.items()}
    elif saved is not None and not isinstance(saved, NoReduction):
        rows[REDUCED] = _Row(saved, size)
    if config.transformers:
        rows[TRANSFORMERS] = _Row(None, size)
    if len(rows) == 1:
        raise InputError(f"{name_of(config.model)} is not reduced, so there is nothing to compare; {_ADDED}")
    if rows.keys() == {UNREDUCED, TRANSFORMERS}:
        logger.info("%s is not reduced; %s", name_of(config.model), _ADDED)
    return rows


def _row_from(name: str, value: Any, size: int) -> _Row:
    if not isinstance(value, Mapping):
        return _Row(measured_reduction(value), size)
    own = value.get("image_size", size)
    if isinstance(own, bool) or not isinstance(own, int):
        raise InputError(f"image_size of reductions.{name} is {own!r}; give pixels along a side, or leave it out")
    return _Row(measured_reduction({key: setting for key, setting in value.items() if key != "image_size"}), own)


def _variant(base: PreTrainedModel, row: _Row) -> PreTrainedModel:
    """A copy that shares its weights, but for METER's positions where it reads images of another size."""
    model = variant(base, row.reduction)
    if row.size != base.config.image_size:
        set_image_size(row.size, model)
    return model


def _compiled(models: Mapping[str, PreTrainedModel]) -> dict[str, nn.Module]:
    """The patched models compiled, each size in a graph of its own."""
    exact = Buckets(batch=(), words=(), grid=1)
    return {
        name: model if reduction(model) is None else compile(model, buckets=exact) for name, model in models.items()
    }


def _speed(config: BenchmarkConfig, models: Mapping[str, nn.Module], make_inputs: Any) -> dict[str, Any]:
    with progress_bar(config.progress) as bar:
        task = bar.add_task("timing", total=len(config.batch_sizes) * config.pairs, note="")
        tick = partial(bar.advance, task)
        return compare(models, make_inputs, config.batch_sizes, config.pairs, config.seconds, tick=tick)


def _memory(config: BenchmarkConfig, rows: Mapping[str, _Row], device: str, length: int) -> dict[str, Any]:
    """Peak memory of every model, with autograd off and on."""
    measured: dict[str, Any] = {}
    for name, row in rows.items():
        settings = None if row.reduction is None else config_to_dict(row.reduction)
        measured[name] = {"batch": config.memory_batch}
        for mode, autograd in (("inference", False), ("autograd", True)):
            job = Job(
                config.model,
                settings,
                config.memory_batch,
                autograd,
                device,
                config.dtype,
                image_size=row.size,
                text_length=length,
                threads=config.threads,
            )
            try:
                peak = peak_memory(job)
            except RuntimeError as error:
                raise InputError(f"{error} ({name}, memory_batch={job.batch}); lower memory_batch, or 0") from error
            measured[name] |= {"weights": peak["weights"], mode: peak["activations"]}
    return measured


def _row(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """One model in the terms of `pumer.demo.report`."""
    speed = []
    for point in result["speed"]["points"]:
        timed = point["models"][name]
        entry = {"batch": point["batch"], "images_per_second": timed["images_per_second"]}
        speed.append(entry if name == UNREDUCED else entry | {"speedup": timed["speedup"]})
    planned = result["plan"][name]
    row = {"name": name, "speed": speed, "macs": planned["macs"], "ideal_speedup": planned["ideal_speedup"]}
    if "memory" in result:
        row["memory"] = result["memory"][name]["weights"] + result["memory"][name]["inference"]
    return row


def tables(result: Mapping[str, Any]) -> Group:
    """Speed, memory and time split of a result of `run`, for the terminal."""
    memory = [_memory_table(result)] if "memory" in result else []
    return Group(_speed_table(result), *memory, _split_table(result))


def _speed_table(result: Mapping[str, Any]) -> Table:
    where = result["provenance"]
    title = f"{result['what']}\n{where['device']}, {where['threads']} threads"
    table = narrow_table(title, "batch", "ms", "images/s", "speed-up", "quartiles", "ideal")
    ideal = {name: f"{planned['ideal_speedup']:.2f}x" for name, planned in result["plan"].items()}
    for point in result["speed"]["points"]:
        for name, timed in point["models"].items():
            speedup, rate = timed["speedup"], f"{timed['images_per_second']:.1f}"
            cells = [str(point["batch"]), f"{1e3 * timed['seconds']['median']:.1f}", rate, times(speedup["median"])]
            table.add_row(name, *cells, f"{speedup['low']:.2f}-{speedup['high']:.2f}", ideal[name])
        table.add_section()
    fastest = result.get("fastest", {})
    for name, best in fastest.items():
        rate = best["images_per_second"]
        ratio = times(rate / fastest[UNREDUCED]["images_per_second"])
        table.add_row(name, f"best: {best['batch']}", "", f"{rate:.1f}", ratio, "", ideal[name])
    return table


def times(ratio: float) -> str:
    """A speed-up; below 1 named as a slow-down."""
    return f"{ratio:.2f}x" + (" as fast" if ratio < 1 else "")


def _memory_table(result: Mapping[str, Any]) -> Table:
    batch = result["memory"][UNREDUCED]["batch"]
    title = f"peak memory of a forward of {batch} examples, MiB"
    table = narrow_table(title, "weights", "activations, inference", "activations, autograd on")
    for name, measured in result["memory"].items():
        table.add_row(name, *(f"{measured[part] / 2**20:.0f}" for part in ("weights", "inference", "autograd")))
    return table


def _split_table(result: Mapping[str, Any]) -> Table:
    batch, parts = max(point["batch"] for point in result["speed"]["points"]), ("embedding", "reduce", "rest")
    table = narrow_table(f"where the time goes, batch {batch}", *parts)
    for name, seconds in result["split"].items():
        table.add_row(name, *(f"{100 * seconds[part] / sum(seconds.values()):.1f}%" for part in parts))
    return table
