"""From answers to figures: accuracy with its uncertainty, by group, and compared with other runs."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from pumer.evaluation.statistics import Interval, bootstrap
from pumer.settings.common import Rule
from pumer.tasks import Example, Task, VQAv2
from pumer.utils.errors import InputError

FORMER_RULE: Rule = "published"
"""The rule behind scores that were written before files named their rule."""


def summarise(task: Task, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, Any]:
    """Official accuracy with 95% intervals over images.

    Returns:
        `questions` (how many), `accuracy` (`mean`, `low`, `high`, in [0, 1]), for every group that the task breaks
        scores down by, such as `question_type`, the same by value, and `figures`, what the task reports beside
        accuracy, such as `consistency`; their `questions` are how many values the figure is the mean of. Of VQAv2 also
        `rule`.
    """
    scores, sources = task.scores(examples, answers).tolist(), sources_of(examples)
    groups: dict[str, dict[str, list[tuple[float, str]]]] = defaultdict(lambda: defaultdict(list))
    for example, score, source in zip(examples, scores, sources, strict=True):
        for name, value in example.groups.items():
            groups[name][value].append((score, source))
    by_group = {
        name: {value: mean_score(*zip(*part, strict=True)) for value, part in sorted(by.items())}
        for name, by in groups.items()
    }
    figures = {name: mean_score(*zip(*part, strict=True)) for name, part in task.figures(examples, answers).items()}
    result = {"questions": len(scores), **rule_of(task), "accuracy": asdict(bootstrap(scores, sources)), **by_group}
    return result | {"figures": figures} if figures else result


def task_for(kind: type[Task], labels: Sequence[str], rule: Rule | None = None) -> Task:
    """A task bound to labels, with the rule that VQAv2 scores by.

    Args:
        kind: the task's class.
        labels: see `Task`.
        rule: see `pumer.tasks.vqa_accuracy.accuracy`; None for the official one.

    Raises:
        InputError: for a rule where another task is scored.
    """
    if rule is None:
        return kind(labels)
    if not issubclass(kind, VQAv2):
        raise InputError(f"rule={rule} is for task vqav2, not for task {kind.name}; leave it out")
    return kind(labels, rule)


def rule_of(task: Task) -> dict[str, str]:
    """What a result file reports about the rule that VQAv2 is scored by: `rule`; nothing of other tasks."""
    return {"rule": task.rule} if isinstance(task, VQAv2) else {}


def sources_of(examples: Iterable[Example]) -> list[str]:
    """What each example shares with others; its id where it shares nothing."""
    return [example.source or str(example.id) for example in examples]


def per_example(examples: Sequence[Example], answers: Sequence[str], scores: Sequence[float]) -> list[dict[str, Any]]:
    """What a `per_example` file holds, for other runs to be compared with."""
    rows = zip(examples, sources_of(examples), answers, scores, strict=True)
    return [
        {"id": example.id, "source": source, "answer": answer, "score": score}
        for example, source, answer, score in rows
    ]


def compare(
    scores: Mapping[int | str, float], answers: Mapping[int | str, str], other: Mapping[str, Any]
) -> dict[str, Any]:
    """How this run differs from another one on the same questions.

    Args:
        scores: official scores by question id.
        answers: answers by question id.
        other: content of the other run's `per_example` file.

    Returns:
        `model` (the other), `difference` of accuracy (this minus other; `mean`, `low`, `high`, paired
        bootstrap) and `agreement`, the fraction of questions with the same answer.

    Raises:
        InputError: when the other run answered other questions.
    """
    theirs = entries_for(scores, other)
    differences = [score - theirs[number]["score"] for number, score in scores.items()]
    sources = [theirs[number].get("source", str(number)) for number in scores]
    same = [answers[number] == theirs[number]["answer"] for number in scores]
    return {
        "model": other["model"],
        "difference": asdict(bootstrap(differences, sources)),
        "agreement": sum(same) / len(same),
    }


def entries_for(
    numbers: Collection[int | str], other: Any, rule: str | None = None
) -> dict[int | str, Mapping[str, Any]]:
    """What another run's `per_example` file holds about some questions, by question id.

    Args:
        numbers: the ids of the questions.
        other: content of the file.
        rule: by which this run is scored; None where there is no choice.

    Raises:
        InputError: for a file of something else, when the other run answered other questions, and when it was scored
            by another rule.
    """
    entries = other.get("examples") if isinstance(other, Mapping) and "model" in other else None
    listed: list[Any] = entries if isinstance(entries, list) else [None]
    if not all(isinstance(entry, Mapping) and _is_entry(entry) for entry in listed):
        raise InputError("the file to compare with is no per_example file of `pumer evaluate`; make one with it")
    their_rule = other.get("rule", FORMER_RULE)
    if rule not in (None, their_rule):
        raise InputError(f"the run to compare with is scored by rule={their_rule}, this one by {rule}; give the same")
    theirs = {entry["id"]: entry for entry in listed}
    if len(theirs) < len(listed):
        raise InputError("the file to compare with has an id more than once; make it again with `pumer evaluate`")
    if theirs.keys() != set(numbers):
        raise InputError(
            f"the run to compare with answered {len(theirs)} other questions, this one {len(numbers)}; "
            "evaluate both on the same split and limit"
        )
    return theirs


def _is_entry(entry: Mapping[str, Any]) -> bool:
    score = entry.get("score")
    number = isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= 1
    return number and isinstance(entry.get("id"), int | str) and isinstance(entry.get("answer"), str)


def constant_per_template(task: Task, train: Iterable[Example], test: Sequence[Example]) -> list[str]:
    """The answers of a baseline that sees only the question's template (`task.template`), or nothing at all.

    Args:
        task: for its official score.
        train: examples from which the best constant answer of every template is computed.
        test: examples to answer; a template unseen in training gets the best constant answer of all.
    """
    credit: dict[str | None, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for example in train:
        for answer in sorted(task.candidates(example)):
            score = task.score(example, answer)
            for name in {_template(task, example), None}:
                credit[name][answer] += score
    best = {name: max(sorted(answers), key=answers.__getitem__) for name, answers in credit.items()}
    return [best.get(_template(task, example), best[None]) for example in test]


def _template(task: Task, example: Example) -> str | None:
    return None if task.template is None else example.groups[task.template]


def table(result: Mapping[str, Any], task: type[Task] | Task, title: str) -> Table:
    """A result as a table: accuracy in percent with its 95% interval.

    Args:
        result: as `summarise` returns it; `constant_per_template` and `difference` are shown where it has them.
        task: names its groups, and says whether it has templates.
        title: above the table.
    """
    rule = result.get("rule", "official")
    shown = Table(title=title if rule == "official" else f"{title}, {rule} rule")
    for heading in ("questions of", "number", "accuracy % [95% interval]"):
        shown.add_column(heading, justify="left" if heading == "questions of" else "right")
    for group in task.groups:
        for value, part in result.get(group, {}).items():
            shown.add_row(f"{group.replace('_', ' ')} {value}", str(part["questions"]), str(Interval.of(part)))
    shown.add_section()
    shown.add_row("all", str(result["questions"]), str(Interval.of(result["accuracy"])), style="bold")
    for name, part in result.get("figures", {}).items():
        shown.add_row(name, str(part["questions"]), str(Interval.of(part)))
    if "constant_per_template" in result:
        name = "best constant answer" if task.template is None else "best constant per template"
        shown.add_row(name, "", str(Interval.of(result["constant_per_template"])))
    if "difference" in result:
        other = result["difference"]
        shown.add_row(f"difference to {other['model']}", "", str(Interval.of(other["difference"])))
        shown.add_row(f"agreement with {other['model']}", "", f"{100 * other['agreement']:.1f}")
    return shown


def mean_score(scores: Sequence[float], sources: Sequence[str] | None = None) -> dict[str, Any]:
    """`questions`, and `mean`, `low`, `high` of their scores, in [0, 1]."""
    return {"questions": len(scores), **asdict(bootstrap(scores, sources))}
