"""The command line: parse, check what was given, and only then load the libraries and call the job."""

import json
import logging
import re
from contextvars import ContextVar
from importlib import import_module
from importlib.metadata import version as version_of
from pathlib import Path
from textwrap import fill, indent
from typing import Annotated, Any, Protocol, TypeVar, cast

import typer
import yaml
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from pumer.config import described, load, to_dict
from pumer.errors import InputError, out_of_memory, refused_by_system
from pumer.processes import interrupts_end_at_once, interrupts_raise, is_main_process, leave_group
from pumer.settings.common import Rule

INTERRUPTED = 130
UNUSABLE_INPUT = 2
_ANYWHERE = "--verbose"
_SETTING = re.compile(r"[\w.]+=")
_verbose: ContextVar[bool] = ContextVar("verbose", default=False)
_written: ContextVar[tuple[Path, ...]] = ContextVar("written", default=())


class _Config(Protocol):
    """What the settings of every command have."""

    @property
    def written(self) -> tuple[Path, ...]: ...

    def check_places(self) -> None: ...


Config = TypeVar("Config", bound=_Config)


class _Commands(TyperGroup):
    """Ends every command the same way: 2 for unusable input, 130 for Ctrl-C, a traceback for a defect."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take --verbose wherever it stands."""
        if "" in args:
            typer.echo("error: an argument is empty; give it a value, or leave it out", err=True)
            raise typer.Exit(UNUSABLE_INPUT)
        rest = [argument for argument in args if argument != _ANYWHERE]
        return list(super().parse_args(ctx, [_ANYWHERE] * (rest != args) + rest))

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            typer.echo(str(stop) or "interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            message = _line(error)
            if message is None:
                raise
            typer.echo(f"error: {message}", err=True)
            raise typer.Exit(UNUSABLE_INPUT) from error
        finally:
            interrupts_end_at_once()


def _line(error: Exception) -> str | None:
    """The one line about an error that a user can do something about; None for a defect."""
    if isinstance(error, InputError):
        # An error from a data-loading process arrives inside that process's traceback; its last line says it.
        return str(error).strip().splitlines()[-1].removeprefix("pumer.errors.InputError: ")
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and out_of_memory(error)):
        said = (str(error).strip() or "out of memory").splitlines()[0].removesuffix(".")
        return f"{said}; lower batch_size (of a benchmark: batch_sizes, memory_batch)"
    return refused_by_system(error, " or ".join(map(str, _written.get())) or "a file")


def _with_settings(module: str, name: str) -> type[TyperCommand]:
    """A command whose help tells the settings that a config has.

    Args:
        module: below `pumer.settings`.
        name: of the config.
    """

    class WithSettings(TyperCommand):
        @staticmethod
        def settings() -> dict[str, str]:
            return described(getattr(import_module(f"pumer.settings.{module}"), name))

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


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"pumer {version_of('pumer')}")
        raise typer.Exit


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option(_ANYWHERE, help="Show the settings in force, of any command.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of all commands."""
    _verbose.set(verbose)


@app.command(cls=_with_settings("train", "TrainConfig"))
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file, such as recipes/vilt/vqav2-pumer.yaml.")],
    settings: Settings = None,
) -> None:
    """Fine-tune a model; the same command continues an interrupted run."""
    from pumer.settings.train import TrainConfig

    config = _resolve(TrainConfig, recipe, settings)
    result = _run("pumer.train", config)
    leave_group()
    if "accuracy" in result:
        _console().print(f"accuracy {100 * result['accuracy']['mean']:.1f}%", highlight=False)
    _console().print(f"model and run.json are in {config.output}", highlight=False, soft_wrap=True)


@app.command(cls=_with_settings("evaluate", "EvaluateConfig"))
def evaluate(model: Model, settings: Settings = None, force: Force = False) -> None:
    """Official accuracy of a trained model, with its uncertainty."""
    from pumer.settings.evaluate import EvaluateConfig

    _run("pumer.evaluate", _resolve(EvaluateConfig, None, settings, force, model=model), _console())


@app.command(cls=_with_settings("predict", "PredictConfig"))
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
    config = _resolve(PredictConfig, None, settings, force, **given)
    answered = _run("pumer.predict", config)
    _console().print(f"{answered} answers are in {config.file}", highlight=False, soft_wrap=True)


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
    result = _run("pumer.score", _checked(config), None if as_json else _console())
    if as_json:
        typer.echo(json.dumps(result, indent=2))


@app.command(cls=_with_settings("benchmark", "BenchmarkConfig"))
def benchmark(model: ModelOrPreset = None, settings: Settings = None, force: Force = False) -> None:
    """Speed and memory of a model beside its unreduced self."""
    from pumer.settings.benchmark import BenchmarkConfig

    _run("pumer.benchmark", _resolve(BenchmarkConfig, None, _with_model(model, settings), force))


@app.command(cls=_with_settings("visualize", "VisualizeConfig"))
def visualize(
    model: Model,
    image: Annotated[str, typer.Argument(help="Image file.")],
    rest: Annotated[list[str], typer.Argument(metavar="[IMAGE] QUESTION [KEY=VALUE]...", show_default=False)],
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("tokens.png"),
    force: Force = False,
) -> None:
    """Draw which patches and words a model pruned and merged for one question about an image, or about two."""
    from pumer.settings.visualize import VisualizeConfig

    pair = len(rest) > 1 and not _SETTING.match(rest[1])
    images, (question, *settings) = [image, *rest[:pair]], rest[pair:]
    given = {"checkpoint": model, "images": images, "question": question, "out": str(out)}
    config = _resolve(VisualizeConfig, None, settings, force, **given)
    answer = _run("pumer.visualize", config)
    _console().print(f"{answer} ({config.out})", highlight=False, markup=False, soft_wrap=True)


@app.command(cls=_with_settings("plan", "PlanConfig"))
def plan(model: ModelOrPreset = None, settings: Settings = None) -> None:
    """Tokens per layer, MACs and ideal speed-up of a reduction, before any run."""
    from pumer.settings.plan import PlanConfig

    planned = _run("pumer.planning", _resolve(PlanConfig, None, _with_model(model, settings)))
    _console().print(str(planned), highlight=False, markup=False, soft_wrap=True)


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

    config = _checked(ConvertConfig(source, out, answers, task, image_size, force))
    _console().print_json(data=_run("pumer.convert", config))


@data.command("world", cls=_with_settings("data", "WorldConfig"))
def data_world(
    out: Annotated[Path, typer.Argument(help="Folder to write.")], settings: Settings = None, force: Force = False
) -> None:
    """Write the built-in world in the official formats of the tasks."""
    from pumer.settings.data import WorldConfig

    config = _resolve(WorldConfig, None, settings, force, out=str(out))
    for folder in _run("pumer.world.write", config):
        _console().print(f"wrote {folder}", highlight=False, soft_wrap=True)


@data.command("prepare", cls=_with_settings("data", "PrepareConfig"))
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
    config = _resolve(PrepareConfig, None, [*(settings or []), *flags], task=task, root=str(root), out=str(out))
    record = _run("pumer.prepare", config)
    from pumer.prepare import summary

    _console().print(summary(record, config.out), highlight=False, markup=False, soft_wrap=True)


@data.command("check", cls=_with_settings("data", "CheckConfig"))
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
    config = _resolve(CheckConfig, None, [*(settings or []), *flags], force, task=task, root=str(root))
    problems = _run("pumer.check", config, _console())["problems"]
    if problems:
        raise InputError(f"{len(problems)} images are missing or broken; `pumer data prepare` leaves them out")


@world.command("pretrain", cls=_with_settings("pretrain", "PretrainConfig"))
def world_pretrain(settings: Settings = None) -> None:
    """Make the small checkpoint that ships with the package anew."""
    from pumer.settings.pretrain import PretrainConfig

    _run("pumer.world.pretrain", _resolve(PretrainConfig, None, settings))


@app.command(cls=_with_settings("demo", "DemoConfig"))
def demo(settings: Settings = None) -> None:
    """Fine-tune, reduce, compare and report on the built-in world; no download."""
    from pumer.settings.demo import DemoConfig

    _run("pumer.demo", _resolve(DemoConfig, None, settings))


@app.command(cls=_with_settings("train", "TrainConfig"))
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
    from pumer.settings.reproduce import ReproduceConfig

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
    _run("pumer.reproduce.run", _checked(config), _console(), collect_only=collect, list_only=listing)


def main() -> None:
    """The command line, in this process."""
    app()


def _resolve(
    cls: type[Config], recipe: Path | None, settings: list[str] | None, force: bool = False, **given: Any
) -> Config:
    """The config of a job, from a recipe, arguments and settings."""
    arguments = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given.items()]
    flags = ["force=true"] if force else []
    return _checked(load(cls, recipe, [*arguments, *(settings or []), *flags]))


def _with_model(model: str | None, settings: list[str] | None) -> list[str]:
    """Settings of a command whose first argument may be a model, or the first setting."""
    first = [] if model is None else [model if _SETTING.match(model) else f"model={json.dumps(model)}"]
    return [*first, *(settings or [])]


def _checked(config: Config) -> Config:
    """A config whose files and folders are there; shown on stderr with --verbose."""
    config.check_places()
    _written.set(config.written)
    if _verbose.get() and is_main_process():
        shown = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
        Console(stderr=True, style="dim").print(shown, highlight=False, markup=False)
    return config


def _run(module: str, *arguments: Any, **options: Any) -> Any:
    """Load a job, which takes seconds, make the libraries speak plainly, and run it."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pumer").setLevel(logging.INFO if is_main_process() else logging.WARNING)
    job = import_module(module)
    transformers = import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    interrupts_raise()
    return job.run(*arguments, **options)


def _listed(values: list[str] | None) -> tuple[str, ...]:
    """Values of an option that is given several times, or once with commas."""
    return tuple(part for value in values or [] for part in value.split(",") if part)


def _pairs(values: list[str] | None) -> dict[str, str]:
    """Values of an option of the form NAME=VALUE."""
    for value in values or []:
        if "=" not in value:
            raise InputError(f"'{value}' is not of the form NAME=VALUE")
    return dict(value.split("=", 1) for value in values or [])


def _console() -> Console:
    """Results go to stdout, everything else to stderr; of several processes, the first one speaks."""
    return Console(quiet=not is_main_process())
