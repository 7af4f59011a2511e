"""Scoring a result file without a model: the official metrics of predictions that anyone made."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pumer.evaluation.ranking import ABOUT, SCORES, CandidateSets, read_scores
from pumer.evaluation.summary import summarise, table, write_per_example
from pumer.settings.common import RETRIEVAL
from pumer.settings.score import ScoreConfig
from pumer.tasks import Example, Retrieval, Task, task_class
from pumer.tasks.metrics import CUTOFFS
from pumer.tasks.session import with_rule
from pumer.utils.errors import InputError, some
from pumer.utils.files import read_json
from pumer.utils.locks import exclusive

_REMEDY = "score it with the --split and --galleries it was made with"


@exclusive
def run(config: ScoreConfig, console: Console | None = None) -> dict[str, Any]:
    """Score a result file.

    Args:
        config: what to score against what.
        console: where the table goes; None prints nothing.

    Returns:
        The fields of `pumer.evaluation.summary.summarise`.

    Raises:
        InputError: for a missing or broken file, an option that the task has no use for, and for predictions that are
            missing, double, or of nothing that the annotations know.
    """
    kind = task_class(config.task)
    examples, answers = _ranked(config, kind) if issubclass(kind, Retrieval) else _answered(config, kind)
    # a vocabulary is needed for training only
    task = with_rule(kind, kind.fixed_labels, config.rule)
    result = summarise(task, examples, answers)
    if config.per_example is not None:
        made_by, made_of = str(config.predictions), str(config.annotations)
        write_per_example(config.per_example, made_by, made_of, task, examples, answers)
    if console is not None:
        console.print(table(result, task, f"{config.predictions} on {config.annotations}"))
    return result


def _answered(config: ScoreConfig, kind: type[Task]) -> tuple[list[Example], list[str]]:
    """The annotated examples, and what a file answers to each."""
    examples = kind.truth(config.annotations, config.questions)
    if not examples:
        raise InputError(f"{config.annotations} holds nothing to score")
    given, ids = kind.read_submission(config.predictions), {example.id for example in examples}
    if any(number not in ids for number, _ in given):  # known, but not scored: no mistake
        passed_over = kind.known(config.annotations) - ids
        given = [(number, answer) for number, answer in given if number not in passed_over]
    return examples, _in_order(examples, given, config.predictions, "give one to each, and no others")


def _ranked(config: ScoreConfig, kind: type[Retrieval]) -> tuple[list[Example], list[str]]:
    """The queries of a split, and what a file found for each within its candidate set."""
    split, path = config.split or "test", config.predictions
    pairs = kind.pairs(config.annotations, split)
    dataset = read_json(config.annotations).get("dataset")
    if dataset in RETRIEVAL and dataset != kind.name:
        raise InputError(f"{config.annotations} is the file of {dataset}, not of {kind.name}; give the task {dataset}")
    if not pairs:
        raise InputError(f"{config.annotations} holds nothing of split {split}")
    sets = CandidateSets(pairs, config.galleries)
    if path.is_dir():
        if (path / ABOUT).is_file() and read_json(path / ABOUT).get("pairs") != sets.digest:
            raise InputError(f"{path} holds scores of other images and captions; {_REMEDY}")
        path /= SCORES
    if path.suffix == ".npy":
        return sets.queries, sets.best(read_scores(path, sets.shape, _REMEDY))
    answers = _in_order(sets.queries, kind.read_submission(path), path, _REMEDY)
    for query, answer, known in zip(sets.queries, answers, sets.candidates(), strict=True):
        found, needed = answer.split(), min(max(CUTOFFS), len(known))
        strange = [number for number in found if number not in known]
        if strange:
            raise InputError(f"{path}: {query.id} finds {strange[0]}, which is not in its candidate set; {_REMEDY}")
        if len(set(found)) < needed:
            raise InputError(f"{path}: {query.id} finds {len(set(found))} candidates, not {needed} or more; {_REMEDY}")
    return sets.queries, answers


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
