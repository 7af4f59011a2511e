"""The command line: parse, check what was given, and only then load the libraries and call the job."""

from os.path import exists  # Path.exists raises where a question is too long for a name
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from pumer.settings.app import AppConfig
from pumer.settings.benchmark import BenchmarkConfig
from pumer.settings.common import METHODS, PRESETS, TASKS
from pumer.settings.convert import ConvertConfig
from pumer.settings.data import CheckConfig, PrepareConfig, WorldConfig
from pumer.settings.demo import DemoConfig
from pumer.settings.evaluate import EvaluateConfig
from pumer.settings.export import ExportConfig
from pumer.settings.overview import InfoConfig, Kind, ListConfig
from pumer.settings.plan import PlanConfig
from pumer.settings.predict import PredictConfig
from pumer.settings.score import ScoreConfig
from pumer.settings.serve import ServeConfig
from pumer.settings.train import TrainConfig
from pumer.settings.tune import TuneConfig
from pumer.settings.visualize import VisualizeConfig
from pumer.utils.commands import (
    SETTING,
    application,
    console,
    group,
    report,
    resolve,
    run_job,
    say,
    show_table,
    with_settings,
)
from pumer.utils.config import described, to_dict
from pumer.utils.errors import InputError
from pumer.utils.places import is_exported
from pumer.utils.processes import leave_group
from pumer.utils.shipped import SMALL, recipe_file, recipes

app = application(
    "Faster vision-language transformers: fewer tokens inside the layers.\n\nSettings of a command are key=value.",
    add_completion=True,
)
data = group("Check, prepare and write data sets.")
app.add_typer(data, name="data")


def _completed(ctx: typer.Context) -> list[str]:
    """Settings of the command that is typed, and the methods of its reduction."""
    names = described(cast(Any, ctx.command).config_type)
    return [*(f"{name}=" for name in names), *(f"reduction={method}" for method in METHODS if "reduction" in names)]


def _choice(*names: str, **shown: Any) -> Any:
    """An argument that a shell completes to one of these names, or to a file."""
    return typer.Argument(autocompletion=lambda: list(names), **shown)


Settings = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", show_default=False, autocompletion=_completed)
]
Model = Annotated[
    str, _choice(*SMALL, metavar="MODEL", help="Folder, hub name, small:vilt, small:meter or small:llava.")
]
ModelOrPreset = Annotated[
    str | None,
    _choice(
        *SMALL,
        *(f"preset:{name}" for name in PRESETS),
        metavar="MODEL",
        help="Folder, hub name, small:vilt, small:meter, small:llava or a preset; preset:vilt-b32 by default.",
        show_default=False,
    ),
]
Task = Annotated[str, _choice(*TASKS, help="vqav2, nlvr2, snli_ve, flickr30k or coco.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there already.")]


def _numbers(option: str, text: str) -> list[int]:
    """The numbers of an option such as 8,16,32."""
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise InputError(f"{option} is '{text}'; give whole numbers, as in 8,16,32") from None


def _file(help_text: str) -> object:
    return typer.Option(help=help_text, show_default=False)


@app.command(
    cls=with_settings(
        TrainConfig,
        "pumer train vilt/vqav2-pumer data.root=/data/vqav2",
        "pumer train vilt/vqav2-original data.root=/data/vqav2 output=out/mine epochs=2",
    )
)
def train(
    recipe: Annotated[
        str, typer.Argument(help="Name, such as vilt/vqav2-pumer, or YAML file.", autocompletion=lambda: [*recipes()])
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
        EvaluateConfig,
        "pumer evaluate out/vilt/vqav2-pumer split=val",
        "pumer evaluate out/vilt/vqav2-pumer reduction=none output=out/unreduced.json",
    )
)
def evaluate(model: Model, settings: Settings = None, force: Force = False) -> None:
    """Official accuracy of a trained model, with its uncertainty."""
    config = resolve(EvaluateConfig, settings, model=model, force=force)
    result = run_job("pumer.evaluation.evaluate", config, console())
    for path in config.written:
        say(f"wrote {path}")
    report(result)


@app.command(
    cls=with_settings(
        PredictConfig,
        "pumer predict out/vilt/vqav2-pumer split=test --out predictions.json",
        "pumer predict dandelin/vilt-b32-finetuned-vqa --questions questions.csv --out answers.csv",
    )
)
def predict(
    model: Model,
    settings: Settings = None,
    out: Annotated[Path | None, _file("To write: predictions.json, predictions.csv, or the folder answers.")] = None,
    questions: Annotated[
        Path | None, _file("CSV file with the columns image and question, or shards: 'shards/*.parquet' or .tar.")
    ] = None,
    question: Annotated[str | None, _file("One question, about all images of a folder or of shards.")] = None,
    images: Annotated[Path | None, _file("Folder of the images; the current one by default.")] = None,
    force: Force = False,
) -> None:
    """Answers of a trained model to a split, as the official server wants them, or to your questions.

    Shards and folders of images are answered on a Ray cluster; the same command continues an interrupted run.
    """
    given: dict[str, Any] = {"model": model, "images": images, "out": out, "questions": questions}
    config = resolve(PredictConfig, settings, **given, question=question, force=force)
    job = "pumer.serving.batches" if config.sharded else "pumer.evaluation.predict"
    answered = run_job(job, config)
    say(f"{answered} answers are in {config.file}")
    report({"answered": answered, "out": config.file})


@app.command(
    cls=with_settings(
        None,
        "pumer score vqav2 --annotations A.json --predictions P.json",
        "pumer score flickr30k --annotations dataset_flickr30k.json --predictions out/scores --galleries 50x20",
    )
)
def score(
    task: Task,
    annotations: Annotated[Path, typer.Option(help="Official file with the right answers.")],
    predictions: Annotated[Path, typer.Option(help="File in the official result format, or .npy (retrieval).")],
    questions: Annotated[Path | None, _file("VQAv2: score the questions of this file alone.")] = None,
    split: Annotated[str | None, _file("Part of a file that holds all splits (retrieval); test by default.")] = None,
    galleries: Annotated[str | None, _file("Candidate sets it ranks within, as in 50x20 (retrieval).")] = None,
    per_example: Annotated[Path | None, _file("File for one value per example.")] = None,
    rule: Annotated[str | None, _file("VQAv2: official (the challenge's script, the default) or published.")] = None,
    force: Force = False,
) -> None:
    """Grade a result file that anyone made; no model is needed."""
    options: dict[str, Any] = {"questions": questions, "per_example": per_example, "split": split, "rule": rule}
    options |= {"annotations": annotations, "predictions": predictions, "galleries": galleries, "force": force}
    config = resolve(ScoreConfig, None, task=task, **options)
    result = run_job("pumer.evaluation.score", config, console())
    if per_example is not None:
        say(f"wrote {per_example}")
    report(result)


@app.command(
    cls=with_settings(
        BenchmarkConfig,
        "pumer benchmark out/vilt/vqav2-pumer output=out/speed.json",
        "pumer benchmark preset:vilt-b32 'reductions={tokens: {method: tome, layers: [2, 5, 8], merge_count: 20}}'",
    )
)
def benchmark(model: ModelOrPreset = None, settings: Settings = None, force: Force = False) -> None:
    """Speed and memory of a model beside its unreduced self."""
    model, settings = _model_or_setting(model, settings)
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
    image: Annotated[Path, typer.Argument(help="Image file.")],
    rest: Annotated[
        list[str] | None, typer.Argument(metavar="[IMAGE]... [QUESTION] [KEY=VALUE]...", show_default=False)
    ] = None,
    question: Annotated[
        list[str] | None, _file("Instead of the question after the images; repeat it to compare several.")
    ] = None,
    out: Annotated[
        Path | None, _file("File to write, .png, .svg or .gif (an animation); tokens.png by default.")
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
    answers = run_job("pumer.visualization.visualize", config)
    say(f"{', '.join(answers)} ({config.out})")
    report({"answers": answers, "out": config.out})


@app.command(
    cls=with_settings(
        PlanConfig,
        "pumer plan preset:vilt-b32 'reduction={method: pumer, layers: [2, 5, 8], prune_ratio: 0.1}'",
        "pumer plan out/vilt/vqav2-pumer text_length=16",
    )
)
def plan(model: ModelOrPreset = None, settings: Settings = None) -> None:
    """Tokens per layer, MACs and ideal speed-up of a reduction, before any run."""
    model, settings = _model_or_setting(model, settings)
    counted = run_job("pumer.profiling.planning", resolve(PlanConfig, settings, model=model))
    say(counted)
    report({name: getattr(counted, name) for name in ("macs", "ideal_speedup")} | to_dict(counted))


@app.command(
    cls=with_settings(
        None,
        "pumer convert csarron/vilt-vqa2-p0.1-r0.3-t0.2-258 out/released",
        "pumer convert meter_clip16_288_roberta_vqa.ckpt out/released-meter --task vqa2 --image-size 384",
    )
)
def convert(
    source: Annotated[str, typer.Argument(help="Folder or .ckpt file of a released checkpoint, or its hub name.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    answers: Annotated[Path | None, _file("File that names the answers of a VQA head.")] = None,
    task: Annotated[str | None, _file("vqa2, ve, nlvr2, irtr or mlm, if the head does not show it.")] = None,
    image_size: Annotated[int | None, _file("Pixels a METER model shall read along a side.")] = None,
    force: Force = False,
) -> None:
    """Turn a released checkpoint into one that pumer and transformers load."""
    options: dict[str, Any] = {"answers": answers, "task": task, "image_size": image_size, "force": force}
    config = resolve(ConvertConfig, None, source=source, out=out, **options)
    found = run_job("pumer.conversion.convert", config)
    show_table("", {name: value for name, value in found.items() if value is not None})
    report(found)


@app.command(
    cls=with_settings(
        None,
        "pumer export out/vilt/vqav2-pumer out/exported --precision bf16",
        "pumer export out/vilt/vqav2-pumer out/exported-onnx --to onnx --text-length 8,16,32",
    )
)
def export(
    model: Model,
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    to: Annotated[str, typer.Option(help="What runs it: openvino, onnx or torch.")] = "openvino",
    precision: Annotated[str, typer.Option(help="Of OpenVINO's arithmetic: f32, bf16, f16 or int8.")] = "f32",
    calibration: Annotated[
        Path | None, _file("Data folder an int8 program is calibrated on; the model's own by default.")
    ] = None,
    calibration_examples: Annotated[int, typer.Option(help="How many of its training examples.")] = 300,
    image_size: Annotated[int | None, _file("Pixels along a side of the images; the model's own by default.")] = None,
    text_length: Annotated[
        str | None, _file("Words, special tokens counted; 8,16,32: a program for each. As in training by default.")
    ] = None,
    parts: Annotated[bool, typer.Option("--parts", help="Encoders as programs of their own, of METER.")] = False,
    force: Force = False,
) -> None:
    """Write a model as a program of OpenVINO, ONNX or torch; evaluate, predict and benchmark take it as a model."""
    options: dict[str, Any] = {"to": to, "precision": precision, "image_size": image_size, "parts": parts}
    options["text_length"] = None if text_length is None else _numbers("--text-length", text_length)
    options |= {"calibration": calibration, "calibration_examples": calibration_examples}
    config = resolve(ExportConfig, None, model=model, out=out, **options, force=force)
    record = run_job("pumer.exporting.export", config)
    report(record)
    if config.precision == "int8":
        same = record["calibration"]["agreement"]
        say(f"{config.out} answers as the model does for {same:.1%} of the examples that it was calibrated on")
    else:
        worst = max(row["largest"] for row in record["differences"])
        say(f"{config.out} answers as the model does, but for {worst:.1g} in its logits")


@app.command(
    cls=with_settings(
        ServeConfig,
        "pumer serve out/vilt/vqav2-pumer",
        "pumer serve out/vilt/vqav2-pumer replicas=4 port=9000",
    )
)
def serve(model: Model, settings: Settings = None) -> None:
    """Answer questions over HTTP, until Ctrl-C: KServe's protocol, and chats of models that generate."""
    run_job("pumer.serving.serve", resolve(ServeConfig, settings, model=model))


@app.command(
    "app",
    cls=with_settings(
        AppConfig,
        "pumer app",
        "pumer app out/vilt/vqav2-original small:vilt results=out port=8080",
    ),
)
def app_(
    models: Annotated[
        list[str] | None,
        _choice(
            *SMALL,
            metavar="[MODEL]... [KEY=VALUE]...",
            help="Folders, hub names or models that ship; by default those that ship.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compare a model with its reduced self in the browser: answers, latency, tokens; until Ctrl-C."""
    given = models or []
    first = next((at for at, word in enumerate(given) if SETTING.match(word)), len(given))
    run_job("pumer.app.run", resolve(AppConfig, given[first:], models=given[:first] or None))


@app.command(
    cls=with_settings(
        TuneConfig,
        "pumer tune out/vilt/vqav2-original out/tuned budget.speedup=2.0",
        "pumer tune out/vilt/vqav2-original out/tuned-macs budget.speedup=1.5 cost=macs methods=[pumer]",
    )
)
def tune(
    source: Model,
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    settings: Settings = None,
) -> None:
    """Find the layers and ratios that lose least at a speed, on this machine; the same command continues a run."""
    config = resolve(TuneConfig, settings, model=source, out=out)
    result = run_job("pumer.tuning.run", config, console())
    say(f"model, card and tuning.json are in {config.out}")
    report(result)


@data.command(
    "world",
    cls=with_settings(
        WorldConfig,
        "pumer data world out/world",
        "pumer data world out/small-world tasks=[vqav2] train=600 val=300",
    ),
)
def data_world(
    out: Annotated[Path, typer.Argument(help="Folder to write.")], settings: Settings = None, force: Force = False
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
    root: Annotated[Path, typer.Argument(help="Folder with the official files.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it can stand for ROOT in every command.")],
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
    root: Annotated[Path, typer.Argument(help="Folder with the official files, or a prepared folder.")],
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
        str | None, _choice(*get_args(Kind), help="methods, models, tasks, recipes or presets; all by default.")
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
    show_table("", {name: x for name, x in found.items() if x})
    report(found)


@app.command(
    cls=with_settings(
        DemoConfig,
        "pumer demo",
        "pumer demo output=out/short-demo questions=300 pairs=5",
    )
)
def demo(settings: Settings = None) -> None:
    """Fine-tune, reduce, compare and report on the built-in world; no download."""
    report(run_job("pumer.demo.run", resolve(DemoConfig, settings), console()))


def main() -> None:
    """The command line, in this process."""
    app()


def _model_or_setting(model: str | None, settings: list[str] | None) -> tuple[str | None, list[str]]:
    """Arguments of a command whose first one may be a model, or a setting."""
    if model is not None and SETTING.match(model):
        return None, [model, *(settings or [])]
    return model, settings or []
