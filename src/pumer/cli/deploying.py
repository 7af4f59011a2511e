"""Commands that export and serve a model, and show it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pumer.cli.base import Force, Model, Settings, app, choice, numbers, option
from pumer.settings.app import AppConfig
from pumer.settings.demo import DemoConfig
from pumer.settings.export import ExportConfig
from pumer.settings.serve import ServeConfig
from pumer.utils.commands import SETTING, console, report, resolve, run_job, say, with_settings
from pumer.utils.shipped import SMALL


@app.command(
    cls=with_settings(
        None,
        "pumer export out/vilt/vqav2-pumer out/exported --precision bf16",
        "pumer export out/vilt/vqav2-pumer out/exported-onnx --to onnx --text-length 8,16,32",
    )
)
def export(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    to: Annotated[str, typer.Option(help="What runs it: openvino, onnx or torch.")] = "openvino",
    precision: Annotated[str, typer.Option(help="Of OpenVINO's arithmetic: f32, bf16, f16 or int8.")] = "f32",
    calibration: Annotated[
        Path | None, option("Data folder an int8 program is calibrated on; the model's own by default.")
    ] = None,
    calibration_examples: Annotated[int, typer.Option(help="How many of its training examples.")] = 300,
    image_size: Annotated[int | None, option("Pixels along a side of the images; the model's own by default.")] = None,
    text_length: Annotated[
        str | None,
        option("Words, special tokens counted; 8,16,32: a program for each. As in training by default."),
    ] = None,
    reduction: Annotated[
        str | None, option("In place of the saved one: '{method: tome, layers: [2, 5, 8], merge_count: 20}', or none.")
    ] = None,
    parts: Annotated[bool, typer.Option("--parts", help="Encoders as programs of their own, of METER.")] = False,
    force: Force = False,
) -> None:
    """Write a model as a program of OpenVINO, ONNX or torch; evaluate, predict and benchmark take it as a model."""
    options: dict[str, Any] = {"to": to, "precision": precision, "image_size": image_size, "parts": parts}
    options["text_length"] = None if text_length is None else numbers("--text-length", text_length)
    options |= {"calibration": calibration, "calibration_examples": calibration_examples}
    settings = None if reduction is None else [f"reduction={reduction}"]
    config = resolve(ExportConfig, settings, model=model, out=out, **options, force=force)
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
        choice(
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
        DemoConfig,
        "pumer demo",
        "pumer demo output=out/short-demo questions=300 pairs=5",
    )
)
def demo(settings: Settings = None) -> None:
    """Fine-tune, reduce, compare and report on the built-in world; no download."""
    report(run_job("pumer.demo.run", resolve(DemoConfig, settings), console()))
