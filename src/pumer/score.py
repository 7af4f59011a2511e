"""Scoring a result file without a model: the official figures of predictions that anyone made."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pumer.checkpoint import write_json
from pumer.errors import InputError
from pumer.jobs import task_class
from pumer.scoring import summarise, table
from pumer.tasks import Example

_SHOWN = 3


@dataclass(frozen=True)
class ScoreConfig:
    """Settings of `pumer score`.

    Attributes:
        task: name in `pumer.tasks.TASKS`.
        annotations: official file with the right answers; for retrieval Karpathy's.
        predictions: file in the task's result format.
        questions: VQAv2: official file of questions; scores those alone. Null: all that are annotated.
        split: part of a file that holds all splits; for retrieval.
        per_example: file for one value per example.
    """

    task: str
    annotations: Path
    predictions: Path
    questions: Path | None = None
    split: str = "test"
    per_example: Path | None = None


def run(config: ScoreConfig, console: Console | None = None) -> dict[str, Any]:
    """Score a result file.

    Args:
        config: what to score against what.
        console: where the table goes; None prints nothing.

    Returns:
        The fields of `pumer.scoring.summarise`: `accuracy` with its 95% interval, overall and by group, and the task's
        further `figures`.

    Raises:
        InputError: for a missing or broken file, and for predictions that are missing, double, or of nothing asked.
    """
    task_type = task_class(config.task)
    examples = task_type.truth(config.annotations, config.questions, config.split)
    if not examples:
        raise InputError(f"{config.annotations} holds nothing to score")
    answers = _in_order(examples, task_type.read_submission(config.predictions), config.predictions)
    task = task_type(getattr(task_type, "fixed_labels", ()))  # a vocabulary is needed for training only
    result = summarise(task, examples, answers)
    if config.per_example is not None:
        scores = task.scores(examples, answers).tolist()
        rows = zip(examples, answers, scores, strict=True)
        entries = [{"id": example.id, "answer": answer, "score": score} for example, answer, score in rows]
        about = {"model": str(config.predictions), "split": str(config.annotations)}
        write_json(config.per_example, {**about, "examples": entries})
    if console is not None:
        console.print(table(result, task.groups, f"{config.predictions} on {config.annotations}"))
    return result


def _in_order(examples: Sequence[Example], given: Sequence[tuple[int | str, str]], path: Path) -> list[str]:
    """The answers in the order of the examples."""
    answers = dict(given)
    ids = {example.id for example in examples}
    if len(answers) < len(given):
        ((double, _),) = Counter(number for number, _ in given).most_common(1)
        raise InputError(f"{path} answers {double} more than once; give one answer each")
    missing = [str(example.id) for example in examples if example.id not in answers]
    if missing:
        raise InputError(f"{path} lacks {len(missing)} of {len(ids)} answers: {_some(missing)}; give one to each")
    unknown = [str(number) for number in answers if number not in ids]
    if unknown:
        raise InputError(f"{path} answers {len(unknown)} examples that are not asked: {_some(unknown)}; remove them")
    return [answers[example.id] for example in examples]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
