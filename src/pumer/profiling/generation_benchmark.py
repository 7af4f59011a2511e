"""`pumer benchmark` of a generative model: its answers beside those of its unreduced self, on the machine at hand."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from transformers import PreTrainedModel

from pumer.patching import reduction
from pumer.profiling.generation import CHOOSING, STAGES, time_stages
from pumer.profiling.generation_memory import PromptJob, base_model, peak_memory
from pumer.profiling.named_models import variant
from pumer.profiling.prompt_planning import MIB, plan_prompt
from pumer.profiling.prompts import images_of, prompt_for, prompt_size
from pumer.profiling.reporting import chosen_device, finished, narrow_table
from pumer.reducers import NoReduction, ReductionConfig, config_to_dict, reduction_from
from pumer.settings.benchmark import BenchmarkConfig
from pumer.utils.errors import InputError
from pumer.utils.progress import progress_bar
from pumer.utils.shipped import name_of

TRANSFORMERS, UNREDUCED, REDUCED = "transformers", "unreduced", "reduced"


def run(config: BenchmarkConfig, console: Console | None = None) -> dict[str, Any]:
    """Measure, show a table and write the result.

    Args:
        config: What to measure.
        console: Where the table goes; stdout by default.

    Returns:
        ``prompt`` (``text_tokens``, ``image_tokens``, ``new_tokens``); ``plan`` (by model name, see
        `pumer.profiling.prompt_planning.PromptPlan`: ``macs``, ``ideal_speedup``, ``cache_bytes`` of a prompt, and
        ``tokens`` that enter each layer; of a method whose numbers of tokens depend on the prompt, the reason why there
        is no plan); ``points``, per batch size ``batch`` and what
        `pumer.profiling.generation.time_stages` measures; ``memory``; ``provenance``. The first of the models, which
        the others are compared with, is transformers' own forward.
    """
    for name in ("compile", "search"):
        if getattr(config, name):
            raise InputError(f"{name}=true is not for a model that generates; leave it out")
    device = chosen_device(config)
    base = base_model(config.model, device, config.dtype)
    text_tokens, image_tokens = prompt_size(base.config, config.text_tokens, config.image_tokens)
    rows = _rows(config, base)
    images = images_of(
        base, prompt_for(base, text_tokens, image_tokens)
    )  # refuses what cannot be made, before all else
    models = {name: variant(base, row) for name, row in rows.items()}
    sizes = {"text_tokens": text_tokens, "image_tokens": image_tokens, "new_tokens": config.new_tokens}
    result: dict[str, Any] = {
        "what": f"{name_of(config.model)}, {text_tokens} text and {image_tokens} image tokens, {config.dtype}",
        "prompt": sizes,
        "plan": {name: _planned(model, text_tokens, images) for name, model in models.items()},
        "points": [],
    }
    if config.memory_batch and device.type in ("cpu", "cuda"):  # first: too large a batch fails here
        result["memory"] = _memory(config, rows, base, device.type, sizes)
    with progress_bar(config.progress) as bar:
        task = bar.add_task("timing", total=len(config.batch_sizes) * config.pairs * len(STAGES), note="")
        for batch in config.batch_sizes:
            inputs = prompt_for(base, text_tokens, image_tokens, batch)
            rounds = config.pairs, config.seconds, lambda: bar.advance(task)
            result["points"].append({"batch": batch, **time_stages(models, inputs, config.new_tokens, *rounds)})
    return finished(result, config, device, tables, console)


def _planned(model: PreTrainedModel, text_tokens: int, images: list[int]) -> dict[str, Any]:
    try:
        planned = plan_prompt(model, text_tokens, images)
    except InputError as error:  # a method without a plan can be measured all the same
        return {"failed": str(error)}
    return {
        "macs": planned.macs,
        "ideal_speedup": planned.ideal_speedup,
        "cache_bytes": planned.cache_bytes,
        "tokens": [(row.text_tokens, row.image_tokens) for row in planned.layers],
    }


def _rows(config: BenchmarkConfig, base: PreTrainedModel) -> dict[str, ReductionConfig | None]:
    """What is measured, the baseline first; None for transformers' own forward."""
    rows: dict[str, ReductionConfig | None] = {TRANSFORMERS: None} if config.transformers else {}
    rows[UNREDUCED] = NoReduction()
    saved = reduction(base)
    if config.reductions:
        rows |= {name: reduction_from(value) for name, value in config.reductions.items()}
    elif saved is not None and not isinstance(saved, NoReduction):
        rows[REDUCED] = saved
    if len(rows) == 1:
        raise InputError(f"{config.model} is not reduced, so there is nothing to compare; give reductions=...")
    return rows


def _memory(
    config: BenchmarkConfig,
    rows: Mapping[str, ReductionConfig | None],
    base: PreTrainedModel,
    device: str,
    sizes: Mapping[str, int],
) -> dict[str, Any]:
    """Peak memory of every model."""
    measured: dict[str, Any] = {}
    for name, row in rows.items():
        settings = None if row is None else config_to_dict(row)
        job = PromptJob(
            config.model,
            settings,
            config.memory_batch,
            **sizes,
            device=device,
            dtype=config.dtype,
            threads=config.threads,
        )
        try:
            measured[name] = {"batch": config.memory_batch, **peak_memory(job, base)}
        except RuntimeError as error:
            raise InputError(f"{error} ({name}, memory_batch={job.batch}); lower memory_batch, or 0") from error
    return measured


def tables(result: Mapping[str, Any]) -> Group:
    """Speed and memory of a result of `run`, for the terminal."""
    where, parts = result["provenance"], []
    for point in result["points"]:
        title = f"{result['what']}, batch {point['batch']}\n{where['device']}, {where['threads']} threads"
        seconds = narrow_table(title, "first", "encoded", "decoder", "token", "MiB")
        speedups = narrow_table("speed-up", "first", "encoded", "decoder", "ideal", "token")
        quartiles = narrow_table("quartiles of the speed-up", "first", "encoded", "decoder", "token")
        for name, planned in result["plan"].items():
            timed = [point[stage][name] for stage in STAGES]
            *prompt, token = (1e3 * each["seconds"]["median"] for each in timed)
            cache = f"{point['cache_bytes'][name] / MIB:.0f}"
            seconds.add_row(name, *(f"{milliseconds:.0f}" for milliseconds in prompt), f"{token:.1f}", cache)
            cells = [f"{each['speedup']['median']:.2f}x" for each in timed]
            cells.insert(-1, f"{planned['ideal_speedup']:.2f}x" if "ideal_speedup" in planned else "")
            speedups.add_row(name, *cells)
            quartiles.add_row(name, *(f"{each['speedup']['low']:.2f}-{each['speedup']['high']:.2f}" for each in timed))
        parts += [seconds, speedups, quartiles]
        if point[CHOOSING]:
            table = narrow_table("choosing image tokens", "ms, before the decoder")
            for name, timed in point[CHOOSING].items():
                table.add_row(name, f"{1e3 * timed['seconds']['median']:.1f}")
            parts.append(table)
    if "memory" in result:
        batch = next(iter(result["memory"].values()))["batch"]
        table = narrow_table(f"peak memory of {batch} answers, MiB", "weights", "activations and cache")
        for name, measured in result["memory"].items():
            table.add_row(name, *(f"{measured[part] / MIB:.0f}" for part in ("weights", "activations")))
        parts.append(table)
    return Group(*parts, LEGEND)


LEGEND = (
    "ms until the first token, the same once images are encoded and shortened, and\nin the decoder's layers alone; ms "
    "per further token; MiB of cache after the\nprompt. Speed-ups are against the first row."
)
