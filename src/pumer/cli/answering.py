"""Commands that answer a task with a model, or grade answers."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pumer.cli.base import Force, Model, Settings, Task, app, option
from pumer.settings.evaluate import EvaluateConfig
from pumer.settings.predict import PredictConfig
from pumer.settings.score import ScoreConfig
from pumer.utils.commands import console, report, resolve, run_job, say, with_settings


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
        "pumer predict small:vilt --questions questions.csv 'reduction={method: tome, layers: [2, 5], merge_count: 9}'",
    )
)
def predict(
    model: Model,
    settings: Settings = None,
    out: Annotated[Path | None, option("To write: predictions.json, predictions.csv, or the folder answers.")] = None,
    questions: Annotated[
        Path | None, option("CSV file with the columns image and question, or shards: 'shards/*.parquet' or .tar.")
    ] = None,
    question: Annotated[str | None, option("One question, about all images of a folder or of shards.")] = None,
    images: Annotated[Path | None, option("Folder of the images; of --questions the current one by default.")] = None,
    force: Force = False,
) -> None:
    """Answers of a trained model to a split, as the official server wants them, or to your questions.

    Shards and folders of images are answered on a Ray cluster; the same command continues an interrupted run.
    """
    given: dict[str, Any] = {"model": model, "images": images, "out": out, "questions": questions}
    config = resolve(PredictConfig, settings, **given, question=question, force=force)
    job = "pumer.serving.batches" if config.sharded else "pumer.evaluation.predict"
    answered = run_job(job, config)
    what = "row" if config.sharded else "answer"
    say(f"{answered} {what} is in {config.file}" if answered == 1 else f"{answered} {what}s are in {config.file}")
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
    questions: Annotated[Path | None, option("VQAv2: score the questions of this file alone.")] = None,
    split: Annotated[str | None, option("Part of a file that holds all splits (retrieval); test by default.")] = None,
    galleries: Annotated[str | None, option("Candidate sets it ranks within, as in 50x20 (retrieval).")] = None,
    per_example: Annotated[Path | None, option("File for one value per example.")] = None,
    rule: Annotated[str | None, option("VQAv2: official (the challenge's script, the default) or published.")] = None,
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
