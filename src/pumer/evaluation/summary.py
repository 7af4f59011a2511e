"""From answers to metrics: accuracy with its uncertainty, by group, and compared with another run."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from pumer.evaluation.statistics import bootstrap, percent
from pumer.settings.common import Rule
from pumer.tasks import Example, Task, VQAv2
from pumer.utils.errors import InputError
from pumer.utils.files import read_json, write_json

FORMER_RULE: Rule = "published"
"""The rule behind scores that were written before files named their rule."""


def summarise(
    task: Task,
    examples: Sequence[Example],
    answers: Sequence[str],
    train: Sequence[Example] = (),
    against: "OtherRun | None" = None,
) -> dict[str, Any]:
    """Official accuracy of one answer per example, with 95% intervals over images.

    Returns:
        `questions` (how many), `accuracy` (`mean`, `low`, `high`, in [0, 1]); the same by value for every group of the
        task, such as `question_type`; as `figures` the task's further metrics, such as `consistency`, whose `questions`
        are how many values are averaged; of VQAv2 also `rule`; with answers in `train` `constant_per_template`, the
        accuracy of the best constant answer per question type, or of one answer to all where the task has no types;
        with `against` `difference`, see `OtherRun.compared`.
    """
    scores, sources = task.scores(examples, answers).tolist(), sources_of(examples)
    groups: dict[str, dict[str, list[tuple[float, str]]]] = defaultdict(lambda: defaultdict(list))
    for example, score, source in zip(examples, scores, sources, strict=True):
        for name, value in example.groups.items():
            groups[name][value].append((score, source))
    result = {"questions": len(scores), **rule_of(task), "accuracy": bootstrap(scores, sources)}
    result |= {name: {value: _mean(by[value]) for value in sorted(by)} for name, by in groups.items()}
    metrics = {name: _mean(values) for name, values in task.metrics(examples, answers).items()}
    result |= {"figures": metrics} if metrics else {}
    if train and train[0].answers:
        constants = task.scores(examples, constant_per_template(task, train, examples)).tolist()
        result["constant_per_template"] = _mean(list(zip(constants, sources, strict=True)))
    if against is not None:
        result["difference"] = against.compared(examples, answers, scores)
    return result


def _mean(scored: Sequence[tuple[float, str]]) -> dict[str, Any]:
    """`questions`, and `mean`, `low`, `high` of scores with their sources."""
    scores, sources = zip(*scored, strict=True)
    return {"questions": len(scored), **bootstrap(scores, sources)}


def rule_of(task: Task) -> dict[str, str]:
    """What a result file reports about the rule that VQAv2 is scored by: `rule`; nothing of other tasks."""
    return {"rule": task.rule} if isinstance(task, VQAv2) else {}


def sources_of(examples: Iterable[Example]) -> list[str]:
    """What each example shares with others; its id where it shares nothing."""
    return [example.source or str(example.id) for example in examples]


def write_per_example(
    path: Path, model: str, split: str, task: Task, examples: Sequence[Example], answers: Sequence[str]
) -> None:
    """Write the answer and score of every example, for `OtherRun` to read."""
    rows = zip(examples, sources_of(examples), answers, task.scores(examples, answers).tolist(), strict=True)
    entries = [
        {"id": example.id, "source": source, "answer": answer, "score": score}
        for example, source, answer, score in rows
    ]
    write_json(path, {"model": model, "split": split, **rule_of(task), "examples": entries})


class OtherRun:
    """Another run, of `model`, on the same examples: its `entries` by id, from a file of `write_per_example`."""

    def __init__(self, path: Path, task: Task, examples: Sequence[Example]) -> None:
        content = read_json(path)
        found = content.get("examples") if isinstance(content, Mapping) and "model" in content else None
        listed: list[Any] = found if isinstance(found, list) else [None]
        if not all(map(_is_entry, listed)):
            raise InputError(f"{path} is no per_example file of `pumer evaluate`; make one with it")
        rule, their_rule = rule_of(task).get("rule"), content.get("rule", FORMER_RULE)
        if rule not in (None, their_rule):
            raise InputError(f"the run in {path} is scored by rule={their_rule}, this one by {rule}; give the same")
        self.model: str = content["model"]
        self.entries: dict[int | str, Mapping[str, Any]] = {entry["id"]: entry for entry in listed}
        if len(self.entries) < len(listed):
            raise InputError(f"{path} has an id more than once; make it again with `pumer evaluate`")
        if self.entries.keys() != {example.id for example in examples}:
            counts = f"{len(listed)} other questions, this one {len(examples)}"
            raise InputError(f"the run in {path} answered {counts}; evaluate both on the same split and limit")

    def compared(self, examples: Sequence[Example], answers: Sequence[str], scores: Sequence[float]) -> dict[str, Any]:
        """How this run differs: the other's `model`, `difference` of accuracy and `agreement` of answers.

        The difference is this minus other (`mean`, `low`, `high`, paired bootstrap), the agreement a fraction.
        """
        theirs = [self.entries[example.id] for example in examples]
        differences = [score - entry["score"] for score, entry in zip(scores, theirs, strict=True)]
        sources = [entry.get("source", str(entry["id"])) for entry in theirs]
        same = [answer == entry["answer"] for answer, entry in zip(answers, theirs, strict=True)]
        difference = bootstrap(differences, sources)
        return {"model": self.model, "difference": difference, "agreement": sum(same) / len(same)}


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, Mapping):
        return False
    score = entry.get("score")
    scored = isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= 1
    return scored and isinstance(entry.get("id"), int | str) and isinstance(entry.get("answer"), str)


def constant_per_template(task: Task, train: Iterable[Example], test: Sequence[Example]) -> list[str]:
    """The answers to `test` of a baseline that knows the question's template (`task.template`) alone, or nothing.

    A template unseen in `train` gets the best constant answer of all.
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


def table(result: Mapping[str, Any], task: Task, title: str) -> Table:
    """A result of `summarise` as a table: accuracy in percent with its 95% interval."""
    rule = result.get("rule", "official")
    shown = Table(title=title if rule == "official" else f"{title}, {rule} rule")
    for heading in ("group", "examples", "accuracy % [95% interval]"):
        shown.add_column(heading, justify="left" if heading == "group" else "right")
    for group in task.groups:
        for value, part in result.get(group, {}).items():
            shown.add_row(f"{group.replace('_', ' ')} {value}", str(part["questions"]), percent(part))
    shown.add_section()
    shown.add_row("all", str(result["questions"]), percent(result["accuracy"]), style="bold")
    for name, part in result.get("figures", {}).items():
        shown.add_row(name, str(part["questions"]), percent(part))
    if "constant_per_template" in result:
        name = "best constant answer" if task.template is None else "best constant per template"
        shown.add_row(name, "", percent(result["constant_per_template"]))
    if "difference" in result:
        other = result["difference"]
        shown.add_row(f"difference to {other['model']}", "", percent(other["difference"]))
        shown.add_row(f"agreement with {other['model']}", "", f"{100 * other['agreement']:.1f}")
    return shown
