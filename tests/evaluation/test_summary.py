import json
from dataclasses import replace

import pytest

from pumer.evaluation.summary import (
    OtherRun,
    constant_per_template,
    rule_of,
    summarise,
    table,
    write_per_example,
)
from pumer.tasks import NLVR2, Example, VQAv2
from pumer.tasks.session import with_rule
from pumer.utils.errors import InputError

LABELS = ("blue", "no", "red", "yes")
TASK = VQAv2(LABELS)
ENTRY = {"id": 1, "answer": "a", "score": 1.0}


def example(number, answer, template, matches=10):
    answers = (answer,) * matches + ("other",) * (10 - matches)
    return Example(number, (), "", answers, {"question_type": template, "answer_type": "any"})


EXAMPLES = [
    example(1, "red", "what"),
    example(2, "blue", "what", matches=2),
    example(3, "yes", "is", matches=3),
    example(4, "no", "is"),
]
ANSWERS = ["red", "blue", "yes", "yes"]


def test_summary_is_the_mean_overall_and_by_group():
    summary = summarise(TASK, EXAMPLES, ANSWERS)
    assert summary["questions"] == 4
    assert summary["accuracy"]["mean"] == pytest.approx((1 + 0.6 + 0.9 + 0) / 4)
    assert summary["accuracy"]["low"] <= summary["accuracy"]["mean"] <= summary["accuracy"]["high"]
    assert {name: part["mean"] for name, part in summary["question_type"].items()} == pytest.approx(
        {"is": 0.45, "what": 0.8}
    )
    assert summary["answer_type"]["any"]["questions"] == 4


@pytest.fixture
def other(tmp_path):
    """From the content of a `per_example` file to the run as it is read."""

    def read(content, examples=EXAMPLES, task=TASK):
        (tmp_path / "other.json").write_text(json.dumps(content))
        return OtherRun(tmp_path / "other.json", task, examples)

    return read


def test_comparison_is_paired(other):
    theirs = {"model": "original", "rule": "official", "examples": [
        {"id": 4, "answer": "no", "score": 1.0},
        {"id": 1, "answer": "red", "score": 1.0},
        {"id": 2, "answer": "blue", "score": 0.6},
        {"id": 3, "answer": "no", "score": 0.0},
    ]}  # fmt: skip
    result = summarise(TASK, EXAMPLES, ANSWERS, against=other(theirs))["difference"]
    assert result["model"] == "original"
    assert result["difference"]["mean"] == pytest.approx((0 + 0 + 0.9 - 1) / 4)
    assert result["difference"]["low"] < 0 < result["difference"]["high"]
    assert result["agreement"] == 0.5


def test_questions_about_one_image_count_once_for_the_interval(tmp_path):
    """Half of the images right, half wrong: the interval is that of four images, however many questions."""
    shared = [
        Example(4 * image + number, (), "", ("yes",) * 10, {"question_type": "is", "answer_type": "any"}, f"{image}")
        for image in range(4)
        for number in range(4)
    ]
    answers = ["yes" if example.source in "01" else "no" for example in shared]
    few = summarise(TASK, shared, answers)
    apart = summarise(TASK, [replace(example, source="") for example in shared], answers)
    assert few["accuracy"]["low"] == 0 < apart["accuracy"]["low"]
    assert few["question_type"]["is"]["low"] == 0
    write_per_example(tmp_path / "right.json", "x", "val", TASK, shared, ["yes"] * 16)
    right = OtherRun(tmp_path / "right.json", TASK, shared)
    assert summarise(TASK, shared, answers, against=right)["difference"]["difference"]["low"] == -1


def test_a_run_agrees_with_itself(tmp_path):
    write_per_example(tmp_path / "a.json", "x", "val", TASK, EXAMPLES, ANSWERS)
    result = summarise(TASK, EXAMPLES, ANSWERS, against=OtherRun(tmp_path / "a.json", TASK, EXAMPLES))["difference"]
    assert result == {"model": "x", "difference": {"mean": 0, "low": 0, "high": 0}, "agreement": 1}


def test_other_questions_are_refused(other):
    with pytest.raises(InputError, match="same split"):
        other({"model": "x", "rule": "official", "examples": [ENTRY]})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([ENTRY, ENTRY], "an id more than once"),
        ([ENTRY | {"score": float("nan")}], "not valid JSON"),
        ([ENTRY | {"score": "1"}], "no per_example file"),
        ([ENTRY | {"score": 2}], "no per_example file"),
        ([ENTRY | {"id": [1]}], "no per_example file"),
        ([ENTRY | {"answer": 3}], "no per_example file"),
        ([{"id": 1}], "no per_example file"),
        ([3], "no per_example file"),
        (3, "no per_example file"),
    ],
)
def test_broken_files_to_compare_with_are_refused(other, entries, message):
    with pytest.raises(InputError, match=message):
        other({"model": "x", "rule": "official", "examples": entries}, EXAMPLES[:1])


@pytest.mark.parametrize(("kind", "rule", "score"), [(VQAv2, None, 0), (VQAv2, "official", 0), (VQAv2, "published", 1)])
def test_the_rule_of_vqa_accuracy(kind, rule, score):
    task, given = with_rule(kind, LABELS, rule), [example(1, "Red!", "what")]
    summary = summarise(task, given, ["red"])
    assert summary["accuracy"]["mean"] == score
    assert ("published rule" in str(table(summary, task, "scores").title)) == (rule == "published")


def test_runs_scored_by_different_rules_are_not_compared(other):
    theirs, published = {"model": "x", "examples": [ENTRY]}, with_rule(VQAv2, LABELS, "published")
    assert other(theirs | {"rule": "official"}, EXAMPLES[:1]).entries == {1: ENTRY}
    for content in (theirs, theirs | {"rule": "published"}):  # files used to name no rule
        assert other(content, EXAMPLES[:1], published).entries == {1: ENTRY}
        with pytest.raises(InputError, match="rule=published, this one by official"):
            other(content, EXAMPLES[:1])
    labels = NLVR2(NLVR2.fixed_labels)
    assert other(theirs, EXAMPLES[:1], labels).entries == {1: ENTRY}


def test_other_tasks_have_no_rule():
    assert rule_of(with_rule(NLVR2, NLVR2.fixed_labels, None)) == {}
    assert with_rule(NLVR2, NLVR2.fixed_labels, None).labels == NLVR2.fixed_labels
    with pytest.raises(InputError, match="rule=published is for task vqav2, not for task nlvr2"):
        with_rule(NLVR2, NLVR2.fixed_labels, "published")


def test_constant_per_template_takes_the_best_scoring_answer():
    train = [
        example(1, "red", "what", matches=2),
        example(2, "red", "what", matches=2),
        example(3, "blue", "what", matches=10),
        example(4, "no", "is"),
        example(5, "no", "is"),
        example(6, "yes", "is"),
    ]
    test = [example(7, "x", "what"), example(8, "x", "is"), example(9, "x", "never seen")]
    credit = {"red": 0.6 * 2, "blue": 1.0, "other": 2 * 1.0}
    assert max(credit, key=credit.get) == "other"
    assert constant_per_template(TASK, train, test) == ["other", "no", "no"]
