"""Commands on data sets."""

from pathlib import Path
from typing import Annotated

import typer

from pumer.cli.base import Force, Settings, Task, data
from pumer.settings.data import CheckConfig, PrepareConfig, WorldConfig
from pumer.utils.commands import console, report, resolve, run_job, say, with_settings
from pumer.utils.errors import InputError


@data.command(
    "world",
    cls=with_settings(
        WorldConfig,
        "pumer data world out/world",
        "pumer data world out/small-world tasks=[vqav2] train=600 val=300",
    ),
)
def data_world(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    settings: Settings = None,
    force: Force = False,
) -> None:
    """Write the built-in world in the official formats of the tasks."""
    folders = run_job("pumer.world.write", resolve(WorldConfig, settings, out=out, force=force))
    for folder in folders:
        say(f"wrote {folder}")
    report({"folders": folders})


@data.command(
    "prepare",
    cls=with_settings(
        PrepareConfig,
        "pumer data prepare vqav2 /data/vqav2 out/vqav2-arrow",
        "pumer data prepare vqav2 /data/vqav2 out/vqav2-480 resize=480 --strict",
    ),
)
def data_prepare(
    task: Task,
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder with the official files.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder to write; it can stand for ROOT in every command.")
    ],
    settings: Settings = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at an image that is missing or broken.")] = False,
) -> None:
    """Check a download and put its images into a few Arrow files; the same command continues an interrupted run."""
    config = resolve(PrepareConfig, settings, task=task, root=root, out=out, strict=strict)
    record = run_job("pumer.tasks.prepare", config)
    from pumer.tasks.prepare import summary

    say(summary(record, config.out))
    report(record)


@data.command(
    "check",
    cls=with_settings(
        CheckConfig,
        "pumer data check vqav2 /data/vqav2",
        "pumer data check vqav2 /data/vqav2 splits=[val] --speed",
    ),
)
def data_check(
    task: Task,
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder with the official files, or a prepared folder.")],
    settings: Settings = None,
    speed: Annotated[bool, typer.Option("--speed", help="Also measure images per second per core.")] = False,
    force: Force = False,
) -> None:
    """Report what is wrong with a data folder before training; exit code 2 if anything is."""
    config = resolve(CheckConfig, settings, task=task, root=root, speed=speed, force=force)
    result = run_job("pumer.tasks.check", config, console())
    report(result)
    if problems := result["problems"]:
        raise InputError(f"{len(problems)} images are missing or broken; `pumer data prepare` leaves them out")
