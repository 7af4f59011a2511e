"""Commands that say what a model is, what it costs and what it does with tokens."""

from os.path import exists  # Path.exists raises where a question is too long for a name
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
import yaml

from pumer.cli.base import Force, Model, ModelOrPreset, Settings, app, choice, model_or_setting, option
from pumer.settings.benchmark import BenchmarkConfig
from pumer.settings.overview import InfoConfig, Kind, ListConfig
from pumer.settings.plan import PlanConfig
from pumer.settings.visualize import VisualizeConfig
from pumer.utils.commands import SETTING, console, report, resolve, run_job, say, show_table, with_settings
from pumer.utils.config import to_dict
from pumer.utils.errors import InputError
from pumer.utils.places import is_exported


@app.command(
    cls=with_settings(
        PlanConfig,
        "pumer plan preset:vilt-b32 'reduction={method: pumer, layers: [2, 5, 8], prune_ratio: 0.1}'",
        "pumer plan out/vilt/vqav2-pumer text_length=16",
    )
)
def plan(model: ModelOrPreset = None, settings: Settings = None) -> None:
    """Tokens per layer, MACs and ideal speed-up of a reduction, before any run."""
    model, settings = model_or_setting(model, settings)
    counted = run_job("pumer.profiling.planning", resolve(PlanConfig, settings, model=model))
    say(counted)
    report({name: getattr(counted, name) for name in ("macs", "ideal_speedup")} | to_dict(counted))


@app.command(
    cls=with_settings(
        BenchmarkConfig,
        "pumer benchmark out/vilt/vqav2-pumer output=out/speed.json",
        "pumer benchmark preset:vilt-b32 'reductions={tokens: {method: tome, layers: [2, 5, 8], merge_count: 20}}'",
    )
)
def benchmark(model: ModelOrPreset = None, settings: Settings = None, force: Force = False) -> None:
    """Speed and memory of a model beside its unreduced self."""
    model, settings = model_or_setting(model, settings)
    config = resolve(BenchmarkConfig, settings, model=model, force=force)
    job = "pumer.exporting.benchmark" if is_exported(config.model) else "pumer.profiling.benchmark"
    report(run_job(job, config, console()))


@app.command(
    cls=with_settings(
        VisualizeConfig,
        'pumer visualize out/vilt/vqav2-pumer cat.jpg "what is on the sofa?" --out cat.svg',
        'pumer visualize small:vilt docs/images/scene.png --question "is it red?" --question "where is it?"',
    )
)
def visualize(
    model: Model,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.")],
    rest: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE | QUESTION | KEY=VALUE", show_default=False)
    ] = None,
    question: Annotated[
        list[str] | None, option("Instead of the question after the images; repeat it to compare several.")
    ] = None,
    out: Annotated[
        Path | None, option("File to write, .png, .svg or .gif (an animation); tokens.png by default.")
    ] = None,
    force: Force = False,
) -> None:
    """Draw which patches and words a model pruned and merged for a question about an image, or about several."""
    rest = rest or []
    words = next((at for at, word in enumerate(rest) if at + bool(question) and SETTING.match(word)), len(rest))
    files = next((at for at, word in enumerate(rest) if not Path(word).suffix and not exists(word)), words)
    if question:
        if files < words:
            raise InputError(f'"{rest[files]}" is no image, and --question is given; give one or the other')
    elif words - files > 1:
        asked = " ".join(rest[files:words])
        raise InputError(f'the question is {words - files} arguments; put it into quotes: "{asked}"')
    elif not words:
        raise InputError("a question is missing; give it after the images, or as --question")
    last = words if question else words - 1
    given: dict[str, Any] = {"images": [image, *rest[:last]], "questions": question or rest[last:words]}
    config = resolve(VisualizeConfig, rest[words:], model=model, **given, out=out, force=force)
    asked = run_job("pumer.visualization.visualize", config)
    answers = [each.answer for each in asked]
    say(f"{', '.join(answer or '(empty)' for answer in answers)} ({config.out})")
    unreduced, tokens = [each.unreduced for each in asked], [each.tokens for each in asked]
    report({"answers": answers, "without_reduction": unreduced, "tokens": tokens, "out": config.out})


@app.command(
    "list",
    cls=with_settings(
        None,
        "pumer list",
        "pumer list methods --json",
    ),
)
def list_(
    kind: Annotated[
        str | None, choice(*get_args(Kind), help="methods, models, tasks, recipes or presets; all by default.")
    ] = None,
) -> None:
    """What there is to choose from."""
    found = run_job("pumer.overview", resolve(ListConfig, None, kind=kind))
    for name, rows in found.items():
        show_table(name, rows)
    report(found)


@app.command(
    cls=with_settings(
        None,
        "pumer info small:vilt",
        "pumer info out/vilt/vqav2-pumer --json",
    )
)
def info(model: Model) -> None:
    """What a checkpoint is: model, size, task, reduction; no weights are read."""
    found = run_job("pumer.overview", resolve(InfoConfig, None, model=model))
    shown = {name: x for name, x in found.items() if x}
    if "parameters" in shown:
        shown["parameters"] = f"{shown['parameters']:,}"
    reduction = {name: x for name, x in found["reduction"].items() if x is not None and name != "version"}
    shown["reduction"] = yaml.safe_dump(reduction, default_flow_style=True, sort_keys=False, width=1000).strip()
    show_table("", shown)
    report(found)
