"""From answers to metrics: accuracy with its uncertainty, by group, and compared with other runs."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from pumer.evaluation.statistics import Interval, bootstrap
from pumer.settings.common import Rule
from pumer.tasks import Example, Task, VQAv2
from pumer.utils.errors import InputError
from pumer.utils.files import write_json

FORMER_RULE: Rule = "published"
"""The rule behind scores that were written before files named their rule."""


def summarise(task: Task, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, Any]:
    """Official accuracy with 95% intervals over images.

    Returns:
        `questions` (how many), `accuracy` (`mean`, `low`, `high`, in [0, 1]); the same by value for every group that
        the task breaks scores down by, such as `question_type`; as `figures` the task's further metrics, such as
        `consistency`, whose `questions` are how many values are averaged; of VQAv2 also `rule`.
    """
    scores, sources = task.scores(examples, answers).tolist(), sources_of(examples)
    groups: dict[str, dict[str, list[tuple[float, str]]]] = defaultdict(lambda: defaultdict(list))
    for example, score, source in zip(examples, scores, sources, strict=True):
        for name, value in example.groups.items():
            groups[name][value].append((score, source))
    result = {"questions": len(scores), **rule_of(task), "accuracy": asdict(bootstrap(scores, sources))}
    result |= {name: {value: _mean(by[value]) for value in sorted(by)} for name, by in groups.items()}
    metrics = {name: _mean(values) for name, values in task.metrics(examples, answers).items()}
    return result | {"figures": metrics} if metrics else result


def rule_of(task: Task) -> dict[str, str]:
    """What a result file reports about the rule that VQAv2 is scored by: `rule`; nothing of other tasks."""
    return {"rule": task.rule} if isinstance(task, VQAv2) else {}


def sources_of(examples: Iterable[Example]) -> list[str]:
    """What each example shares with others; its id where it shares nothing."""
    return [example.source or str(example.id) for example in examples]


def per_example(task: Task, examples: Sequence[Example], answers: Sequence[str]) -> list[dict[str, Any]]:
    """The entries of a `per_example` file: `id`, `source`, `answer` and official `score` of every example."""
    rows = zip(examples, sources_of(examples), answers, task.scores(examples, answers).tolist(), strict=True)
    return [
        {"id": example.id, "source": source, "answer": answer, "score": score}
        for example, source, answer, score in rows
    ]


def write_per_example(path: Path, model: str, split: str, task: Task, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write a file that other runs can be compared with.

    Args:
        path: JSON file to write.
        model: what answered.
        split: what was answered.
        task: for its rule.
        entries: as `per_example` returns them.
    """
    write_json(path, {"model": model, "split": split, **rule_of(task), "examples": entries})


def compare(entries: Sequence[Mapping[str, Any]], other: Mapping[str, Any]) -> dict[str, Any]:
    """How this run differs from another one on the same questions.

    Args:
        entries: of this run, as `per_example` returns them.
        other: content of the other run's `per_example` file.

    Returns:
        `model` (the other), `difference` of accuracy (this minus other; `mean`, `low`, `high`, paired
        bootstrap) and `agreement`, the fraction of questions with the same answer.

    Raises:
        InputError: when the other run answered other questions.
    """
    theirs = entries_for([entry["id"] for entry in entries], other)
    pairs = [(entry, theirs[entry["id"]]) for entry in entries]
    differences = [ours["score"] - their["score"] for ours, their in pairs]
    sources = [their.get("source", str(their["id"])) for _, their in pairs]
    return {
        "model": other["model"],
        "difference": asdict(bootstrap(differences, sources)),
        "agreement": sum(ours["answer"] == their["answer"] for ours, their in pairs) / len(pairs),
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
    if not all(map(_is_entry, listed)):
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


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, Mapping):
        return False
    score = entry.get("score")
    scored = isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= 1
    return scored and isinstance(entry.get("id"), int | str) and isinstance(entry.get("answer"), str)


def constant_per_template(task: Task, train: Iterable[Example], test: Sequence[Example]) -> list[str]:
    """The answers of a baseline that knows the question's template (`task.template`) alone, or nothing.

    Args:
        task: for its official score.
        train: examples from which the best constant answer of every template is computed.
        test: examples to answer; a template unseen in training gets the best constant answer of all.
    """

    def template(example: Example) -> str | None:
        return None if task.template is None else example.groups[task.template]

    credit: dict[str | None, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for example in train:
        for answer in sorted(task.candidates(example)):
            score = task.score(example, answer)
            for name in {template(example), None}:
                credit[name][answer] += score
    best = {name: max(sorted(answers), key=answers.__getitem__) for name, answers in credit.items()}
    return [best.get(template(example), best[None]) for example in test]


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


def _mean(values: Sequence[tuple[float, str]]) -> dict[str, Any]:
    return mean_score(*zip(*values, strict=True))
