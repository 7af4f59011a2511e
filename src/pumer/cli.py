"""The command line: parse, check what was given, and only then load the libraries and call the job."""

import json
from pathlib import Path
from typing import Annotated, cast

import typer

from pumer.settings.common import Rule
from pumer.utils.commands import (
    SETTING,
    application,
    checked,
    console,
    group,
    resolve,
    run_job,
    with_settings,
)
from pumer.utils.errors import InputError
from pumer.utils.processes import leave_group

app = application(
    "Faster vision-language transformers: fewer tokens inside the layers.\n\nSettings of a command are key=value."
)
data = group("Check, prepare and write data sets.")
app.add_typer(data, name="data")

Settings = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", show_default=False)]
Model = Annotated[str, typer.Argument(metavar="DIR", help="Folder of a model, or its name on the hub.")]
ModelOrPreset = Annotated[
    str | None,
    typer.Argument(
        metavar="DIR",
        help="Folder of a model, or its name on the hub; preset:vilt-b32 by default.",
        show_default=False,
    ),
]
Task = Annotated[str, typer.Argument(help="vqav2, nlvr2, snli_ve, flickr30k or coco.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there already.")]


@app.command(cls=with_settings("pumer.settings.train", "TrainConfig"))
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file, such as recipes/vilt/vqav2-pumer.yaml.")],
    settings: Settings = None,
) -> None:
    """Fine-tune a model; the same command continues an interrupted run."""
    from pumer.settings.train import TrainConfig

    config = resolve(TrainConfig, recipe, settings)
    result = run_job("pumer.training.run", config)
    leave_group()
    if "accuracy" in result:
        console().print(f"accuracy {100 * result['accuracy']['mean']:.1f}%", highlight=False)
    console().print(f"model and run.json are in {config.output}", highlight=False, soft_wrap=True)


@app.command(cls=with_settings("pumer.settings.evaluate", "EvaluateConfig"))
def evaluate(model: Model, settings: Settings = None, force: Force = False) -> None:
    """Official accuracy of a trained model, with its uncertainty."""
    from pumer.settings.evaluate import EvaluateConfig

    run_job("pumer.evaluation.evaluate", resolve(EvaluateConfig, None, settings, force, model=model), console())


@app.command(cls=with_settings("pumer.settings.predict", "PredictConfig"))
def predict(
    model: Model,
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write: predictions.json, or predictions.csv for questions.", show_default=False),
    ] = None,
    questions: Annotated[Path | None, typer.Option(help="CSV file with the columns image and question.")] = None,
    images: Annotated[Path, typer.Option(help="Folder of the images it names.")] = Path("."),
    force: Force = False,
) -> None:
    """Answers of a trained model to a split, as the official server wants them, or to a list of questions."""
    from pumer.settings.predict import PredictConfig

    given = {"model": model, "images": str(images)}
    given |= {name: str(path) for name, path in (("out", out), ("questions", questions)) if path is not None}
    config = resolve(PredictConfig, None, settings, force, **given)
    answered = run_job("pumer.evaluation.predict", config)
    console().print(f"{answered} answers are in {config.file}", highlight=False, soft_wrap=True)


@app.command()
def score(
    task: Task,
    annotations: Annotated[Path, typer.Option(help="Official file with the right answers.")],
    predictions: Annotated[Path, typer.Option(help="File in the official result format, or .npy (retrieval).")],
    questions: Annotated[Path | None, typer.Option(help="VQAv2: score the questions of this file alone.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Part of a file that holds all splits (retrieval); test by default.")
    ] = None,
    galleries: Annotated[str | None, typer.Option(help="Galleries it ranks within, as in 50x20 (retrieval).")] = None,
    per_example: Annotated[Path | None, typer.Option(help="File for one value per example.")] = None,
    rule: Annotated[
        str | None, typer.Option(help="VQAv2: official (the challenge's script, the default) or published.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    force: Force = False,
) -> None:
    """Grade a result file that anyone made; no model is needed."""
    from pumer.settings.score import ScoreConfig

    config = ScoreConfig(
        task, annotations, predictions, questions, split, galleries, per_example, force, cast("Rule | None", rule)
    )
    result = run_job("pumer.evaluation.score", checked(config), None if as_json else console())
    if as_json:
        typer.echo(json.dumps(result, indent=2))


@app.command(cls=with_settings("pumer.settings.benchmark", "BenchmarkConfig"))
def benchmark(model: ModelOrPreset = None, settings: Settings = None, force: Force = False) -> None:
    """Speed and memory of a model beside its unreduced self."""
    from pumer.settings.benchmark import BenchmarkConfig

    run_job("pumer.profiling.benchmark", resolve(BenchmarkConfig, None, _with_model(model, settings), force))


@app.command(cls=with_settings("pumer.settings.visualize", "VisualizeConfig"))
def visualize(
    model: Model,
    image: Annotated[str, typer.Argument(help="Image file.")],
    rest: Annotated[list[str], typer.Argument(metavar="[IMAGE] QUESTION [KEY=VALUE]...", show_default=False)],
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("tokens.png"),
    force: Force = False,
) -> None:
    """Draw which patches and words a model pruned and merged for one question about an image, or about two."""
    from pumer.settings.visualize import VisualizeConfig

    pair = len(rest) > 1 and not SETTING.match(rest[1])
    images, (question, *settings) = [image, *rest[:pair]], rest[pair:]
    given = {"checkpoint": model, "images": images, "question": question, "out": str(out)}
    config = resolve(VisualizeConfig, None, settings, force, **given)
    answer = run_job("pumer.visualization.visualize", config)
    console().print(f"{answer} ({config.out})", highlight=False, markup=False, soft_wrap=True)


@app.command(cls=with_settings("pumer.settings.plan", "PlanConfig"))
def plan(model: ModelOrPreset = None, settings: Settings = None) -> None:
    """Tokens per layer, MACs and ideal speed-up of a reduction, before any run."""
    from pumer.settings.plan import PlanConfig

    planned = run_job("pumer.profiling.planning", resolve(PlanConfig, None, _with_model(model, settings)))
    console().print(str(planned), highlight=False, markup=False, soft_wrap=True)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Folder or .ckpt file of a released checkpoint, or its hub name.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    answers: Annotated[Path | None, typer.Option(help="File that names the answers of a VQA head.")] = None,
    task: Annotated[str | None, typer.Option(help="vqa2, ve, nlvr2, irtr or mlm, if the head does not tell.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels a METER model shall read along a side.")] = None,
    force: Force = False,
) -> None:
    """Turn a released checkpoint into one that pumer and transformers load."""
    from pumer.settings.convert import ConvertConfig

    config = checked(ConvertConfig(source, out, answers, task, image_size, force))
    console().print_json(data=run_job("pumer.conversion.convert", config))


@data.command("world", cls=with_settings("pumer.settings.data", "WorldConfig"))
def data_world(
    out: Annotated[Path, typer.Argument(help="Folder to write.")], settings: Settings = None, force: Force = False
) -> None:
    """Write the built-in world in the official formats of the tasks."""
    from pumer.settings.data import WorldConfig

    config = resolve(WorldConfig, None, settings, force, out=str(out))
    for folder in run_job("pumer.world.write", config):
        console().print(f"wrote {folder}", highlight=False, soft_wrap=True)


@data.command("prepare", cls=with_settings("pumer.settings.data", "PrepareConfig"))
def data_prepare(
    task: Task,
    root: Annotated[Path, typer.Argument(help="Folder with the official files.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it can stand for ROOT in every command.")],
    settings: Settings = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at an image that is missing or broken.")] = False,
) -> None:
    """Check a download and put its images into a few Arrow files; the same command continues an interrupted run."""
    from pumer.settings.data import PrepareConfig

    flags = ["strict=true"] if strict else []
    config = resolve(PrepareConfig, None, [*(settings or []), *flags], task=task, root=str(root), out=str(out))
    record = run_job("pumer.tasks.prepare", config)
    from pumer.tasks.prepare import summary

    console().print(summary(record, config.out), highlight=False, markup=False, soft_wrap=True)


@data.command("check", cls=with_settings("pumer.settings.data", "CheckConfig"))
def data_check(
    task: Task,
    root: Annotated[Path, typer.Argument(help="Folder with the official files, or a prepared folder.")],
    settings: Settings = None,
    speed: Annotated[bool, typer.Option("--speed", help="Also measure images per second per core.")] = False,
    force: Force = False,
) -> None:
    """Say what is wrong with a data folder before training; exit code 2 if anything is."""
    from pumer.settings.data import CheckConfig

    flags = ["speed=true"] if speed else []
    config = resolve(CheckConfig, None, [*(settings or []), *flags], force, task=task, root=str(root))
    problems = run_job("pumer.tasks.check", config, console())["problems"]
    if problems:
        raise InputError(f"{len(problems)} images are missing or broken; `pumer data prepare` leaves them out")


@app.command(cls=with_settings("pumer.settings.demo", "DemoConfig"))
def demo(settings: Settings = None) -> None:
    """Fine-tune, reduce, compare and report on the built-in world; no download."""
    from pumer.settings.demo import DemoConfig

    run_job("pumer.demo.run", resolve(DemoConfig, None, settings))


def main() -> None:
    """The command line, in this process."""
    app()


def _with_model(model: str | None, settings: list[str] | None) -> list[str]:
    """Settings of a command whose first argument may be a model, or the first setting."""
    first = [] if model is None else [model if SETTING.match(model) else f"model={json.dumps(model)}"]
    return [*first, *(settings or [])]
