"""Command line of the long experiments: `python -m benchmarks --help`, from the root of the repository."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from benchmarks.pretrain_small.settings import LlavaTrainingConfig, PretrainConfig
from benchmarks.reproduce.settings import ReproduceConfig
from pumer.settings.train import TrainConfig
from pumer.utils.commands import application, checked, console, resolve, run_job, with_settings
from pumer.utils.errors import InputError
from pumer.utils.processes import own_interrupts

app = application("Experiments of the repository: the paper's tables, and the small models that ship.")
Settings = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", show_default=False)]


@app.command(cls=with_settings(PretrainConfig))
def pretrain(settings: Settings = None) -> None:
    """Pre-train the small checkpoint that ships with the package."""
    run_job("benchmarks.pretrain_small.run", resolve(PretrainConfig, settings))


@app.command(cls=with_settings(LlavaTrainingConfig))
def llava(settings: Settings = None) -> None:
    """Train the small generative model that ships with the package."""
    run_job("benchmarks.pretrain_small.run_llava", resolve(LlavaTrainingConfig, settings))


@app.command(cls=with_settings(TrainConfig))
def reproduce(
    settings: Settings = None,
    scale: Annotated[str, typer.Option(help="world: small models, hours on a CPU. full: the official data.")] = "world",
    only: Annotated[list[str] | None, typer.Option(help="Tables, such as table1,figure5; all by default.")] = None,
    cells: Annotated[list[str] | None, typer.Option(help="Such as vilt/nlvr2,meter/coco; all by default.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Of every row; by default 3 for ViLT in Table 1, else 1.")] = None,
    jobs: Annotated[int, typer.Option(help="Steps at once, each with its share of the cores.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder of models, answers and report; out/reproduce, or out/reproduce-smoke.")
    ] = None,
    data_root: Annotated[Path | None, typer.Option("--data", help="Folder with one data folder per task.")] = None,
    start: Annotated[list[str] | None, typer.Option(help="Checkpoint to start from, as vilt=FOLDER.")] = None,
    trained: Annotated[list[str] | None, typer.Option(help="Unreduced model to take, as vilt/nlvr2=FOLDER.")] = None,
    recipes: Annotated[Path | None, typer.Option(help="Folder of the recipes; those that ship by default.")] = None,
    galleries: Annotated[str | None, typer.Option(help="Of retrieval's test: 50x20, or all.")] = None,
    batch: Annotated[int, typer.Option(help="Examples per forward when speed and memory are measured.")] = 32,
    results: Annotated[
        Path | None,
        typer.Option(help="Folder for report and results; rows of other runs stay."),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="Show every step, done or missing.")] = False,
    collect: Annotated[bool, typer.Option("--collect", help="Run nothing; report what is finished.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="Two training steps on a tiny world.")] = False,
) -> None:
    """Train, measure and report the paper's tables; the same command continues an interrupted run.

    Settings are those of `pumer train`, for every training.
    """
    config = ReproduceConfig(
        out=out or Path("out/reproduce-smoke" if smoke else "out/reproduce"),
        scale=cast(Any, scale),
        data=data_root,
        starts=_pairs(start),
        trained=_pairs(trained),
        recipes=recipes,
        only=_listed(only),
        cells=_listed(cells),
        seeds=seeds,
        jobs=jobs,
        galleries=galleries,
        batch=batch,
        settings=tuple(settings or ()),
        smoke=smoke,
        results=results,
    )
    run_job("benchmarks.reproduce.run", checked(config), console(), collect_only=collect, list_only=listing)


def _listed(values: list[str] | None) -> tuple[str, ...]:
    """Values of an option that is given several times, or once with commas."""
    return tuple(part for value in values or [] for part in value.split(",") if part)


def _pairs(values: list[str] | None) -> dict[str, str]:
    """Values of an option of the form NAME=VALUE."""
    for value in values or []:
        if "=" not in value:
            raise InputError(f"'{value}' is not of the form NAME=VALUE")
    return dict(value.split("=", 1) for value in values or [])


if __name__ == "__main__":
    own_interrupts()
    app()
