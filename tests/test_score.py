import json

import pytest
from rich.console import Console

from pumer.errors import InputError
from pumer.score import ScoreConfig, run
from pumer.tasks import VQAv2

ANNOTATIONS = "v2_mscoco_val2014_annotations.json"


def config(root, path, **changes):
    return ScoreConfig("vqav2", root / ANNOTATIONS, path, **changes)


@pytest.fixture
def predictions(tiny_vqa, tmp_path):
    """Every question answered rightly but for the first, which is answered as half of the annotators would."""
    path = tiny_vqa / ANNOTATIONS
    content = json.loads(path.read_text())
    for answer in content["annotations"][0]["answers"][2:]:
        answer["answer"] = "purple"
    path.write_text(json.dumps(content))
    entries = [
        {"question_id": entry["question_id"], "answer": f"The {entry['answers'][0]['answer'].upper()}."}
        for entry in reversed(content["annotations"])
    ]
    (tmp_path / "predictions.json").write_text(json.dumps(entries))
    return tmp_path / "predictions.json"


def test_scores_overall_and_by_group(tiny_vqa, predictions, tmp_path, capsys):
    result = run(config(tiny_vqa, predictions, per_example=tmp_path / "each.json"), Console(width=100))
    assert result["questions"] == 12
    assert result["accuracy"]["mean"] == pytest.approx((0.6 + 11) / 12)
    assert result["question_type"]["what colour"]["mean"] == pytest.approx((0.6 + 5) / 6)
    assert result["answer_type"]["yes/no"]["mean"] == 1
    entries = json.loads((tmp_path / "each.json").read_text())["examples"]
    assert [entry["id"] for entry in entries] == [example.id for example in VQAv2.read(tiny_vqa, "val")]
    assert entries[0]["score"] == pytest.approx(0.6)
    assert "question type what colour" in capsys.readouterr().out


def test_a_file_of_questions_says_what_counts(tiny_vqa, predictions):
    path = tiny_vqa / "v2_OpenEnded_mscoco_val2014_questions.json"
    content = json.loads(path.read_text())
    content["questions"] = content["questions"][:2]
    path.write_text(json.dumps(content))
    predictions.write_text(json.dumps(json.loads(predictions.read_text())[-2:]))
    assert run(config(tiny_vqa, predictions, questions=path))["accuracy"]["mean"] == pytest.approx((0.6 + 1) / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries[:-1], r"lacks 1 of 12 answers: 0; give one to each"),
        (lambda entries: [*entries, {"question_id": 77, "answer": "x"}], r"answers 1 examples that are not asked: 77"),
        (lambda entries: [*entries, entries[3]], r"answers 4000 more than once"),
        (lambda entries: {"answers": entries}, r"must hold a list of"),
        (lambda entries: [{"question": 1}], r"entry 0 must have 'question_id' and 'answer'"),
        (lambda entries: [{"question_id": 1, "answer": 3}], r"'answer' of entry 0 must be text, not 3"),
    ],
)
def test_unusable_predictions_are_named(tiny_vqa, predictions, change, message):
    predictions.write_text(json.dumps(change(json.loads(predictions.read_text()))))
    with pytest.raises(InputError, match=message) as caught:
        run(config(tiny_vqa, predictions))
    assert "\n" not in str(caught.value)


def test_unknown_task(tmp_path):
    with pytest.raises(InputError, match="task 'vqa' is unknown"):
        run(ScoreConfig("vqa", tmp_path / "a", tmp_path / "p"))
