"""The command line: parse, show the resolved config, call the job."""

import json
import logging
import re
from importlib import import_module
from pathlib import Path
from textwrap import fill, indent
from typing import Annotated, Any, TypeVar

import typer
import yaml
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from pumer.config import described, load, to_dict
from pumer.errors import InputError, out_of_memory
from pumer.processes import is_main_process, leave_group

Config = TypeVar("Config")

INTERRUPTED = 130
UNUSABLE_INPUT = 2


class _Commands(TyperGroup):
    """Ends every command the same way: 2 for unusable input, 130 for Ctrl-C, a traceback for a defect."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except InputError as error:
            # An error from a data-loading process arrives inside that process's traceback; its last line says it.
            message = str(error).strip().splitlines()[-1].removeprefix("pumer.errors.InputError: ")
            typer.echo(f"error: {message}", err=True)
            raise typer.Exit(UNUSABLE_INPUT) from error
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            said = (str(error).strip() or "out of memory").splitlines()[0].removesuffix(".")
            typer.echo(f"error: {said}; lower batch_size (of a benchmark: batch_sizes, memory_batch)", err=True)
            raise typer.Exit(UNUSABLE_INPUT) from error
        except KeyboardInterrupt as stop:
            typer.echo(str(stop) or "interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None


def _with_settings(module: str, name: str) -> type[TyperCommand]:
    """A command whose help tells the settings that a config has; it is imported when it is asked for."""

    class WithSettings(TyperCommand):
        @staticmethod
        def settings() -> dict[str, str]:
            return described(getattr(import_module(module), name))

        def format_help(self, ctx: Any, formatter: Any) -> None:
            super().format_help(ctx, formatter)
            lines = [f"{key}\n{indent(fill(text, 90), ' ' * 4)}" for key, text in self.settings().items()]
            typer.echo("\n".join(["Settings, as KEY=VALUE:\n", *lines]))

    return WithSettings


def _group(help_text: str, **settings: Any) -> typer.Typer:
    return typer.Typer(help=help_text, no_args_is_help=True, add_completion=False, **settings)


app = _group(
    "Faster vision-language transformers: fewer tokens inside the layers.\n\nSettings of a command are key=value.",
    cls=_Commands,
    pretty_exceptions_enable=False,
)
data = _group("Check, prepare and write data sets.")
world = _group("The built-in world.")
app.add_typer(data, name="data")
app.add_typer(world, name="world")

Settings = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", show_default=False)]
Model = Annotated[str, typer.Argument(metavar="DIR", help="Folder of a model, or its name on the hub.")]

Task = Annotated[str, typer.Argument(help="vqav2, nlvr2, snli_ve, flickr30k or coco.")]


@app.command(cls=_with_settings("pumer.training.config", "TrainConfig"))
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file, such as recipes/vilt/vqav2-pumer.yaml.")],
    settings: Settings = None,
) -> None:
    """Fine-tune a model; the same command continues an interrupted run."""
    from pumer.train import TrainConfig, run

    config = _resolve(TrainConfig, recipe, settings)
    result = run(config)
    leave_group()
    if "accuracy" in result:
        _console().print(f"accuracy {100 * result['accuracy']['mean']:.1f}%", highlight=False)
    _console().print(f"model and run.json are in {config.output}", highlight=False, soft_wrap=True)


@app.command(cls=_with_settings("pumer.evaluate", "EvaluateConfig"))
def evaluate(model: Model, settings: Settings = None) -> None:
    """Official accuracy of a trained model, with its uncertainty."""
    from pumer.evaluate import EvaluateConfig, run

    run(_resolve(EvaluateConfig, None, settings, model=model), _console())


@app.command(cls=_with_settings("pumer.predict", "PredictConfig"))
def predict(
    model: Model,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("predictions.json"),
    questions: Annotated[Path | None, typer.Option(help="CSV file with the columns image and question.")] = None,
    images: Annotated[Path, typer.Option(help="Folder of the images it names.")] = Path("."),
) -> None:
    """Answers of a trained model to a split, as the official server wants them, or to a list of questions."""
    from pumer.predict import PredictConfig, run

    given = {"model": model, "out": str(out), "images": str(images)}
    if questions is not None:
        given["questions"] = str(questions)
    config = _resolve(PredictConfig, None, settings, **given)
    _console().print(f"{run(config)} answers are in {config.out}", highlight=False, soft_wrap=True)


@app.command()
def score(
    task: Annotated[str, typer.Argument(help="vqav2, nlvr2, snli_ve, flickr30k or coco.")],
    annotations: Annotated[Path, typer.Option(help="Official file with the right answers.")],
    predictions: Annotated[Path, typer.Option(help="File in the official result format, or .npy (retrieval).")],
    questions: Annotated[Path | None, typer.Option(help="VQAv2: score the questions of this file alone.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Part of a file that holds all splits (retrieval); test by default.")
    ] = None,
    galleries: Annotated[str | None, typer.Option(help="Galleries it ranks within, as in 50x20 (retrieval).")] = None,
    per_example: Annotated[Path | None, typer.Option(help="File for one value per example.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Grade a result file that anyone made; no model is needed."""
    from pumer.score import ScoreConfig, run

    config = ScoreConfig(task, annotations, predictions, questions, split, galleries, per_example)
    result = run(config, None if as_json else _console())
    if as_json:
        typer.echo(json.dumps(result, indent=2))


@app.command(cls=_with_settings("pumer.benchmark", "BenchmarkConfig"))
def benchmark(model: Model, settings: Settings = None) -> None:
    """Speed and memory of a model beside its unreduced self."""
    from pumer.benchmark import BenchmarkConfig, run

    run(_resolve(BenchmarkConfig, None, settings, model=model))


@app.command(cls=_with_settings("pumer.visualize", "VisualizeConfig"))
def visualize(
    model: Model,
    image: Annotated[str, typer.Argument(help="Picture file.")],
    rest: Annotated[list[str], typer.Argument(metavar="[IMAGE] QUESTION [KEY=VALUE]...", show_default=False)],
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("tokens.png"),
) -> None:
    """Draw which patches and words a model pruned and merged for one question about a picture, or about two."""
    from pumer.visualize import VisualizeConfig, run

    pair = len(rest) > 1 and not re.match(r"[\w.]+=", rest[1])
    images, (question, *settings) = [image, *rest[:pair]], rest[pair:]
    given = {"checkpoint": model, "images": images, "question": question, "out": str(out)}
    config = _resolve(VisualizeConfig, None, settings, **given)
    _console().print(f"{run(config)} ({config.out})", highlight=False, markup=False, soft_wrap=True)


@app.command(cls=_with_settings("pumer.planning", "PlanConfig"))
def plan(settings: Settings = None) -> None:
    """Tokens per layer, MACs and ideal speed-up of a reduction, before any run."""
    from pumer.planning import PlanConfig, run

    planned = run(_resolve(PlanConfig, None, settings))
    _console().print(str(planned), highlight=False, markup=False, soft_wrap=True)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Folder or .ckpt file of a released checkpoint, or its hub name.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    answers: Annotated[Path | None, typer.Option(help="File that names the answers of a VQA head.")] = None,
    task: Annotated[str | None, typer.Option(help="vqa2, ve, nlvr2, irtr or mlm, if the head does not tell.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels a METER model shall read along a side.")] = None,
) -> None:
    """Turn a released checkpoint into one that pumer and transformers load."""
    from pumer.convert import ConvertConfig, run

    _console().print_json(data=run(_resolved(ConvertConfig(source, out, answers, task, image_size))))


@data.command("world", cls=_with_settings("pumer.world", "WorldConfig"))
def data_world(out: Annotated[Path, typer.Argument(help="Folder to write.")], settings: Settings = None) -> None:
    """Write the built-in world in the official formats of the tasks."""
    from pumer.arguments import writable_folders
    from pumer.world import WorldConfig, write_world

    config = _resolve(WorldConfig, None, settings)
    writable_folders(*(out / name for name in config.tasks))
    for folder in write_world(out, config):
        _console().print(f"wrote {folder}", highlight=False, soft_wrap=True)


@data.command("prepare", cls=_with_settings("pumer.prepare", "PrepareConfig"))
def data_prepare(
    task: Task,
    root: Annotated[Path, typer.Argument(help="Folder with the official files.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it can stand for ROOT in every command.")],
    settings: Settings = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at an image that is missing or broken.")] = False,
) -> None:
    """Check a download and put its images into a few Arrow files; the same command continues an interrupted run."""
    from pumer.prepare import PrepareConfig, run, summary

    flags = ["strict=true"] if strict else []
    config = _resolve(PrepareConfig, None, [*(settings or []), *flags], task=task, root=str(root), out=str(out))
    _console().print(summary(run(config), config.out), highlight=False, markup=False, soft_wrap=True)


@data.command("check", cls=_with_settings("pumer.check", "CheckConfig"))
def data_check(
    task: Task,
    root: Annotated[Path, typer.Argument(help="Folder with the official files, or a prepared folder.")],
    settings: Settings = None,
    speed: Annotated[bool, typer.Option("--speed", help="Also measure images per second per core.")] = False,
) -> None:
    """Say what is wrong with a data folder before training; exit code 2 if anything is."""
    from pumer.check import CheckConfig, run

    flags = ["speed=true"] if speed else []
    config = _resolve(CheckConfig, None, [*(settings or []), *flags], task=task, root=str(root))
    problems = run(config, _console())["problems"]
    if problems:
        raise InputError(f"{len(problems)} images are missing or broken; `pumer data prepare` leaves them out")


@world.command("pretrain", cls=_with_settings("pumer.world.pretrain", "PretrainConfig"))
def world_pretrain(settings: Settings = None) -> None:
    """Make the small checkpoint that ships with the package anew."""
    from pumer.world.pretrain import PretrainConfig, run

    run(_resolve(PretrainConfig, None, settings))


@app.command(cls=_with_settings("pumer.demo", "DemoConfig"))
def demo(settings: Settings = None) -> None:
    """Fine-tune, reduce, compare and report on the built-in world; no download."""
    from pumer.demo import DemoConfig, run

    run(_resolve(DemoConfig, None, settings))


@app.command(cls=_with_settings("pumer.training.config", "TrainConfig"))
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
    recipes: Annotated[Path, typer.Option(help="Folder of the recipes.")] = Path("recipes"),
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
    """Train, measure and tell the paper's tables; the same command goes on where it was stopped.

    Settings are those of `pumer train`, for every training.
    """
    from pumer.reproduce.run import ReproduceConfig, run

    config = ReproduceConfig(
        out=out or Path("out/reproduce-smoke" if smoke else "out/reproduce"),
        scale=scale,
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
    _resolved(config)
    run(config, _console(), collect_only=collect, list_only=listing)


def main() -> None:
    """Entry point of the `pumer` command."""
    app()


def _resolve(cls: type[Config], recipe: Path | None, settings: list[str] | None, **given: Any) -> Config:
    """The config of a job, from a recipe, arguments and settings; shown on stderr."""
    arguments = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given.items()]
    return _resolved(load(cls, recipe, [*arguments, *(settings or [])]))


def _listed(values: list[str] | None) -> tuple[str, ...]:
    """Values of an option that is given several times, or once with commas."""
    return tuple(part for value in values or [] for part in value.split(",") if part)


def _pairs(values: list[str] | None) -> dict[str, str]:
    """Values of an option of the form NAME=VALUE."""
    for value in values or []:
        if "=" not in value:
            raise InputError(f"'{value}' is not of the form NAME=VALUE")
    return dict(value.split("=", 1) for value in values or [])


def _resolved(config: Config) -> Config:
    """Show the config and make the libraries speak plainly, just before a job runs."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pumer").setLevel(logging.INFO if is_main_process() else logging.WARNING)
    shown = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    Console(stderr=True, style="dim", quiet=not is_main_process()).print(shown, highlight=False, markup=False)
    return config


def _console() -> Console:
    """Results go to stdout, everything else to stderr; of several processes, the first one speaks."""
    return Console(quiet=not is_main_process())
