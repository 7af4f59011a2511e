"""Scoring a result file without a model: the official figures of predictions that anyone made."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pumer.evaluation.ranking import (
    ABOUT,
    SCORES,
    best_candidates,
    digest_of_pairs,
    in_galleries,
    read_scores,
    shape_of,
)
from pumer.evaluation.scoring import per_example, rule_of, summarise, table, task_for
from pumer.settings.score import ScoreConfig
from pumer.tasks import Example, Retrieval, task_class
from pumer.tasks.karpathy import Picture
from pumer.tasks.recall import CUTOFFS
from pumer.utils.errors import InputError
from pumer.utils.files import read_json, write_json
from pumer.utils.locks import only_one
from pumer.utils.text import some

_ONE_EACH = "give one to each, and no others"
_REMEDY = "score it with the --split and --galleries it was made with"


def run(config: ScoreConfig, console: Console | None = None) -> dict[str, Any]:
    """Score a result file.

    Args:
        config: what to score against what.
        console: where the table goes; None prints nothing.

    Returns:
        The fields of `pumer.evaluation.scoring.summarise`: `accuracy` with its 95% interval, overall and by group, and
        the task's further `figures`.

    Raises:
        InputError: for a missing or broken file, an option that the task has no use for, and for predictions that are
            missing, double, or of nothing that the annotations know.
    """
    config.check_places()
    with only_one(*config.written):
        return _scored(config, console)


def _scored(config: ScoreConfig, console: Console | None) -> dict[str, Any]:
    task_type = task_class(config.task)
    if issubclass(task_type, Retrieval):
        examples, answers = _ranked(config, task_type)
    else:
        examples = task_type.truth(config.annotations, config.questions)
        if not examples:
            raise InputError(f"{config.annotations} holds nothing to score")
        given = task_type.read_submission(config.predictions)
        ids = {example.id for example in examples}
        if any(number not in ids for number, _ in given):  # known, but not scored: no mistake
            passed_over = task_type.known(config.annotations) - ids
            given = [(number, answer) for number, answer in given if number not in passed_over]
        answers = _in_order(examples, given, config.predictions, _ONE_EACH)
    labels = getattr(task_type, "fixed_labels", ())  # a vocabulary is needed for training only
    task = task_for(task_type, labels, config.rule)
    result = summarise(task, examples, answers)
    if config.per_example is not None:
        entries = per_example(examples, answers, task.scores(examples, answers).tolist())
        about = {"model": str(config.predictions), "split": str(config.annotations), **rule_of(task)}
        write_json(config.per_example, {**about, "examples": entries})
    if console is not None:
        console.print(table(result, task, f"{config.predictions} on {config.annotations}"))
    return result


def _ranked(config: ScoreConfig, task: type[Retrieval]) -> tuple[list[Example], list[str]]:
    """The queries of a split, and what a file found for each within its gallery."""
    split = config.split or "test"
    pairs = task.pairs(config.annotations, split)
    if not pairs:
        raise InputError(f"{config.annotations} holds nothing of split {split}")
    asked, rooms = in_galleries(pairs, config.galleries)
    queries, path = task.queries(asked), config.predictions
    if path.suffix == ".npy" or path.is_dir():
        file = path / SCORES if path.is_dir() else path
        if (
            path.is_dir()
            and (path / ABOUT).is_file()
            and read_json(path / ABOUT).get("pairs") != digest_of_pairs(asked)
        ):
            raise InputError(f"{path} holds scores of other images and captions; {_REMEDY}")
        return queries, best_candidates(rooms, read_scores(file, shape_of(rooms), _REMEDY))
    answers = _in_order(queries, task.read_submission(path), path, _REMEDY)
    for query, answer, known in zip(queries, answers, _candidates(rooms), strict=True):
        found, needed = answer.split(), min(max(CUTOFFS), len(known))
        strange = [number for number in found if number not in known]
        if strange:
            raise InputError(f"{path}: {query.id} finds {strange[0]}, which is no candidate in its gallery; {_REMEDY}")
        if len(set(found)) < needed:
            raise InputError(f"{path}: {query.id} finds {len(set(found))} candidates, not {needed} or more; {_REMEDY}")
    return queries, answers


def _candidates(rooms: Sequence[Sequence[Picture]]) -> Iterator[set[str]]:
    """What each query may find, in the order of the queries."""
    for room in rooms:
        yield from [{str(number) for picture in room for number, _ in picture.captions}] * len(room)
    for room in rooms:
        yield from [{str(picture.id) for picture in room}] * sum(len(picture.captions) for picture in room)


def _in_order(
    examples: Sequence[Example], given: Sequence[tuple[int | str, str]], path: Path, remedy: str
) -> list[str]:
    """The answers in the order of the examples."""
    answers = dict(given)
    ids = {example.id for example in examples}
    if len(answers) < len(given):
        ((double, _),) = Counter(number for number, _ in given).most_common(1)
        raise InputError(f"{path} answers {double} more than once; give one answer each")
    missing = [str(example.id) for example in examples if example.id not in answers]
    as_text = next((number for number in answers if isinstance(number, str)), None)
    if missing and as_text is not None and all(isinstance(number, int) for number in ids):
        raise InputError(f'{path} gives the id "{as_text}" as text; ids must be numbers, without quotes')
    if missing:
        raise InputError(f"{path} lacks {len(missing)} of {len(ids)} answers: {some(missing)}; {remedy}")
    unknown = [str(number) for number in answers if number not in ids]
    if unknown:
        raise InputError(f"{path} answers {len(unknown)} examples that are not asked: {some(unknown)}; {remedy}")
    return [answers[example.id] for example in examples]
