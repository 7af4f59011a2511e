"""From answers to figures: accuracy with its uncertainty, by group, and compared with other runs."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from pumer.errors import InputError
from pumer.tasks import Example, Task
from pumer.tasks.statistics import bootstrap


def summarise(task: Task, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, Any]:
    """Official accuracy with 95% intervals over questions.

    Returns:
        `questions` (how many), `accuracy` (`mean`, `low`, `high`, in [0, 1]), and for every group that the
        task breaks scores down by, such as `question_type`, the same by value.
    """
    scores = task.scores(examples, answers).tolist()
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for example, score in zip(examples, scores, strict=True):
        for name, value in example.groups.items():
            groups[name][value].append(score)
    by_group = {name: {value: mean_score(part) for value, part in sorted(by.items())} for name, by in groups.items()}
    return {"questions": len(scores), "accuracy": asdict(bootstrap(scores)), **by_group}


def compare(scores: Mapping[int, float], answers: Mapping[int, str], other: Mapping[str, Any]) -> dict[str, Any]:
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
    theirs = {entry["id"]: entry for entry in other["examples"]}
    if theirs.keys() != scores.keys():
        raise InputError(
            f"the run to compare with answered {len(theirs)} other questions, this one {len(scores)}; "
            "evaluate both on the same split and limit"
        )
    differences = [score - theirs[number]["score"] for number, score in scores.items()]
    same = [answers[number] == theirs[number]["answer"] for number in scores]
    return {
        "model": other["model"],
        "difference": asdict(bootstrap(differences)),
        "agreement": sum(same) / len(same),
    }


def constant_per_template(
    task: Task, train: Iterable[Example], test: Sequence[Example], template: str = "question_type"
) -> list[str]:
    """The answers of a baseline that sees only the question's template.

    Args:
        task: for its official score.
        train: examples from which the best constant answer of every template is computed.
        test: examples to answer; a template unseen in training gets the best constant answer of all.
        template: name of the group that stands for the template.
    """
    credit: dict[str | None, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for example in train:
        for answer in sorted(set(example.answers)):
            score = task.score(example, answer)
            credit[example.groups[template]][answer] += score
            credit[None][answer] += score
    best = {name: max(sorted(answers), key=answers.__getitem__) for name, answers in credit.items()}
    return [best.get(example.groups[template], best[None]) for example in test]


def table(result: Mapping[str, Any]) -> Table:
    """A result of `run` as a table: accuracy in percent with its 95% interval."""
    shown = Table(title=f"{result['model']} on {result['split']}, {result['reduction']['method']}")
    for heading in ("questions of", "number", "accuracy % [95% interval]"):
        shown.add_column(heading, justify="left" if heading == "questions of" else "right")
    for group in ("answer_type", "question_type"):
        for value, part in result.get(group, {}).items():
            shown.add_row(f"{group.replace('_', ' ')} {value}", str(part["questions"]), _percent(part))
    shown.add_section()
    shown.add_row("all", str(result["questions"]), _percent(result["accuracy"]), style="bold")
    if "constant_per_template" in result:
        shown.add_row("best constant per template", "", _percent(result["constant_per_template"]))
    if "difference" in result:
        other = result["difference"]
        shown.add_row(f"difference to {other['model']}", "", _percent(other["difference"]))
        shown.add_row(f"agreement with {other['model']}", "", f"{100 * other['agreement']:.1f}")
    return shown


def mean_score(scores: Sequence[float]) -> dict[str, Any]:
    """`questions`, and `mean`, `low`, `high` of their scores, in [0, 1]."""
    return {"questions": len(scores), **asdict(bootstrap(scores))}


def _percent(part: Mapping[str, float]) -> str:
    return f"{100 * part['mean']:.1f} [{100 * part['low']:.1f}, {100 * part['high']:.1f}]"
