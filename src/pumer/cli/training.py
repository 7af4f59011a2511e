"""Commands that train a model, search its schedule, and turn released checkpoints into models."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pumer.cli.base import Force, Model, Settings, app, option
from pumer.settings.convert import ConvertConfig
from pumer.settings.train import TrainConfig
from pumer.settings.tune import TuneConfig
from pumer.utils.commands import console, report, resolve, run_job, say, show_table, with_settings
from pumer.utils.processes import leave_group
from pumer.utils.shipped import recipe_file, recipes


@app.command(
    cls=with_settings(
        TrainConfig,
        "pumer train vilt/vqav2-pumer data.root=/data/vqav2",
        "pumer train vilt/vqav2-original data.root=/data/vqav2 output=out/mine epochs=2",
    )
)
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="Name, such as vilt/vqav2-pumer, or YAML file.", autocompletion=lambda: [*recipes()]
        ),
    ],
    settings: Settings = None,
) -> None:
    """Fine-tune a model; the same command continues an interrupted run."""
    config = resolve(TrainConfig, settings, recipe_file(recipe))
    result = run_job("pumer.training.run", config)
    leave_group()
    if "accuracy" in result:
        say(f"accuracy {100 * result['accuracy']['mean']:.1f}%")
    say(f"model and run.json are in {config.output}")
    report(result)


@app.command(
    cls=with_settings(
        TuneConfig,
        "pumer tune out/vilt/vqav2-original out/tuned budget.speedup=2.0",
        "pumer tune out/vilt/vqav2-original out/tuned-macs budget.speedup=1.5 cost=macs methods=[pumer]",
    )
)
def tune(
    source: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    settings: Settings = None,
) -> None:
    """Find the layers and ratios that lose least at a speed, on this machine; the same command continues a run."""
    config = resolve(TuneConfig, settings, model=source, out=out)
    result = run_job("pumer.tuning.run", config, console())
    say(f"model, card and tuning.json are in {config.out}")
    report(result)


@app.command(
    cls=with_settings(
        None,
        "pumer convert csarron/vilt-vqa2-p0.1-r0.3-t0.2-258 out/released",
        "pumer convert meter_clip16_288_roberta_vqa.ckpt out/released-meter --task vqa2 --image-size 384",
    )
)
def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder or .ckpt file of a released checkpoint, or its hub name.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    answers: Annotated[Path | None, option("File that names the answers of a VQA head.")] = None,
    task: Annotated[str | None, option("vqa2, ve, nlvr2, irtr or mlm, if the head does not show it.")] = None,
    image_size: Annotated[int | None, option("Pixels a METER model shall read along a side.")] = None,
    force: Force = False,
) -> None:
    """Turn a released checkpoint into one that pumer and transformers load."""
    options: dict[str, Any] = {"answers": answers, "task": task, "image_size": image_size, "force": force}
    config = resolve(ConvertConfig, None, source=source, out=out, **options)
    found = run_job("pumer.conversion.convert", config)
    show_table("", {name: value for name, value in found.items() if value is not None})
    report(found)
