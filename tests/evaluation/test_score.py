import json

import numpy as np
import pytest
from rich.console import Console

from pumer.evaluation.score import run
from pumer.settings.score import ScoreConfig
from pumer.tasks import VQAv2
from pumer.utils.errors import InputError

ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
FLICKR = "dataset_flickr30k.json"


def config(root, path, **changes):
    return ScoreConfig(task="vqav2", annotations=root / ANNOTATIONS, predictions=path, **changes)


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
    scored = config(tiny_vqa, predictions, per_example=tmp_path / "each.json", rule="published")
    result = run(scored, Console(width=100))
    assert result["questions"] == 12
    assert result["accuracy"]["mean"] == pytest.approx((0.6 + 11) / 12)
    assert result["question_type"]["what colour"]["mean"] == pytest.approx((0.6 + 5) / 6)
    assert result["answer_type"]["yes/no"]["mean"] == 1
    assert json.loads((tmp_path / "each.json").read_text())["rule"] == result["rule"] == "published"
    entries = json.loads((tmp_path / "each.json").read_text())["examples"]
    assert [entry["id"] for entry in entries] == [example.id for example in VQAv2.read(tiny_vqa, "val")]
    assert entries[0]["score"] == pytest.approx(0.6)
    assert "question type what colour" in capsys.readouterr().out


def test_the_official_rule_and_the_published_one(tiny_vqa, predictions):
    """The predictions are not as the annotators wrote them, and only of the first question do these differ."""
    assert run(config(tiny_vqa, predictions))["accuracy"]["mean"] == pytest.approx(0.6 / 12)
    assert run(config(tiny_vqa, predictions, rule="official"))["accuracy"]["mean"] == pytest.approx(0.6 / 12)
    assert run(config(tiny_vqa, predictions, rule="published"))["accuracy"]["mean"] == pytest.approx((0.6 + 11) / 12)
    with pytest.raises(InputError, match=r"rule.*official.*published.* not 'strict'"):
        config(tiny_vqa, predictions, rule="strict")
    with pytest.raises(InputError, match="rule=published is for task vqav2, not for task nlvr2"):
        ScoreConfig(task="nlvr2", annotations=predictions, predictions=predictions, rule="published")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_result_files_with_a_byte_order_mark(tiny_vqa, predictions, tiny_nlvr2, encoding):
    before = run(config(tiny_vqa, predictions))
    predictions.write_bytes(predictions.read_text().replace(", ", ",\r\n").encode(encoding))
    assert run(config(tiny_vqa, predictions)) == before
    pairs = [json.loads(line)["identifier"] for line in (tiny_nlvr2 / "dev.json").read_text().splitlines()]
    predictions.write_bytes("".join(f"{pair},true\r\n" for pair in pairs).encode(encoding))
    assert run(ScoreConfig(task="nlvr2", annotations=tiny_nlvr2 / "dev.json", predictions=predictions))[
        "questions"
    ] == len(pairs)


@pytest.mark.parametrize("text", ["[" * 200_000, '[{"question_id": 1' + "0" * 5000 + "}]", '[{"question_id": NaN}]'])
def test_result_files_that_are_no_json(tiny_vqa, predictions, text):
    predictions.write_text(text)
    with pytest.raises(InputError) as caught:
        run(config(tiny_vqa, predictions))
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_a_file_of_questions_says_what_counts(tiny_vqa, predictions):
    path = tiny_vqa / "v2_OpenEnded_mscoco_val2014_questions.json"
    content = json.loads(path.read_text())
    content["questions"] = content["questions"][:2]
    path.write_text(json.dumps(content))
    assert run(config(tiny_vqa, predictions, questions=path))["questions"] == 2  # the others are known, but not scored
    predictions.write_text(json.dumps(json.loads(predictions.read_text())[-2:]))
    scored = run(config(tiny_vqa, predictions, questions=path, rule="published"))
    assert scored["accuracy"]["mean"] == pytest.approx((0.6 + 1) / 2)


def test_lines_without_a_gold_label_may_be_answered(tiny_snli_ve, tmp_path):
    annotations, path = tiny_snli_ve / "snli_ve_dev.jsonl", tmp_path / "predictions.json"
    ids = [json.loads(line)["pairID"] for line in annotations.read_text().splitlines()]
    entries = [{"pairID": number, "gold_label": "neutral"} for number in ids]
    path.write_text(json.dumps(entries))
    result = run(ScoreConfig(task="snli_ve", annotations=annotations, predictions=path))
    assert (result["questions"], result["accuracy"]["mean"]) == (9, pytest.approx(3 / 9))
    path.write_text(json.dumps([*entries, {"pairID": "9.jpg#0r1n", "gold_label": "neutral"}]))
    with pytest.raises(InputError, match=r"answers 1 examples that are not asked: 9\.jpg#0r1n"):
        run(ScoreConfig(task="snli_ve", annotations=annotations, predictions=path))


@pytest.mark.parametrize(
    ("task", "option", "message"),
    [
        ("nlvr2", {"questions": FLICKR}, "--questions is for vqav2, not for task nlvr2; leave it out"),
        ("vqav2", {"split": "test"}, "--split is for flickr30k and coco, not for task vqav2"),
        ("snli_ve", {"galleries": "2x2"}, "--galleries is for flickr30k and coco, not for task snli_ve"),
        ("flickr30k", {}, "annotations.json does not exist"),
    ],
)
def test_options_without_a_use_and_missing_files(tmp_path, task, option, message):
    with pytest.raises(InputError, match=message):
        run(
            ScoreConfig(
                task=task, annotations=tmp_path / "annotations.json", predictions=tmp_path / "predictions", **option
            )
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries[:-1], r"lacks 1 of 12 answers: 0; give one to each"),
        (lambda entries: [*entries, {"question_id": 77, "answer": "x"}], r"answers 1 examples that are not asked: 77"),
        (lambda entries: [*entries, entries[3]], r"answers 4000 more than once"),
        (
            lambda entries: [entry | {"question_id": str(entry["question_id"])} for entry in entries],
            'gives the id "5001" as text; ids must be numbers',
        ),
        (lambda entries: {"answers": entries}, r"must hold a list of"),
        (lambda entries: [{"question": 1}], r"entry 0 must have 'question_id' and 'answer'"),
        (lambda entries: [{"question_id": 1, "answer": 3}], r"'answer' of entry 0 must be text, not 3"),
        (lambda entries: [{"question_id": [], "answer": ""}], r"'question_id' of entry 0 must be a number or text"),
        (lambda entries: [{"question_id": True, "answer": ""}], r"'question_id' of entry 0 must be a number or text"),
    ],
)
def test_unusable_predictions_are_named(tiny_vqa, predictions, change, message):
    predictions.write_text(json.dumps(change(json.loads(predictions.read_text()))))
    with pytest.raises(InputError, match=message) as caught:
        run(config(tiny_vqa, predictions))
    assert "\n" not in str(caught.value)


def test_unknown_task(tmp_path):
    with pytest.raises(InputError, match="task 'vqa' is unknown"):
        run(ScoreConfig(task="vqa", annotations=tmp_path / "a", predictions=tmp_path / "p"))


@pytest.fixture
def gallery_scores(tiny_flickr, tmp_path):
    """Scores of 4 galleries of 2 images, and what each query finds, by hand."""
    scores = np.random.default_rng(0).normal(size=(8, 10)).astype(np.float32)
    np.save(tmp_path / "scores.npy", scores)
    pictures = [entry for entry in json.loads((tiny_flickr / FLICKR).read_text())["images"] if entry["split"] == "test"]
    entries, right = [], {"image": [], "caption": []}
    for row, picture in enumerate(pictures):
        room = pictures[row - row % 2 : row - row % 2 + 2]
        texts = [sentence["sentid"] for each in room for sentence in each["sentences"]]
        found = [texts[column] for column in sorted(range(10), key=lambda column: -scores[row, column])]
        entries.append({"query": f"image {picture['imgid']}", "found": " ".join(map(str, found))})
        right["image"].append(found[0] in [sentence["sentid"] for sentence in picture["sentences"]])
    for row, picture in enumerate(pictures):
        for index, sentence in enumerate(picture["sentences"]):
            column, first = row % 2 * 5 + index, row - row % 2
            found = sorted(range(2), key=lambda other: -scores[first + other, column])
            found = [pictures[first + other]["imgid"] for other in found]
            entries.append({"query": f"caption {sentence['sentid']}", "found": " ".join(map(str, found))})
            right["caption"].append(found[0] == picture["imgid"])
    (tmp_path / "found.json").write_text(json.dumps(entries))
    return tmp_path, right


@pytest.mark.parametrize("file", ["found.json", "scores.npy", "."])
def test_files_of_galleries_and_of_scores(tiny_flickr, gallery_scores, file):
    folder, right = gallery_scores
    result = run(
        ScoreConfig(task="flickr30k", annotations=tiny_flickr / FLICKR, predictions=folder / file, galleries="4x2")
    )
    assert result["figures"]["text retrieval, recall@1"]["mean"] == np.mean(right["image"])
    assert result["figures"]["image retrieval, recall@1"]["mean"] == np.mean(right["caption"])
    assert result["questions"] == 48
    with pytest.raises(InputError, match="--galleries it was made with"):
        run(ScoreConfig(task="flickr30k", annotations=tiny_flickr / FLICKR, predictions=folder / file, galleries="2x4"))


def test_the_file_of_another_data_set_is_refused(tiny_flickr, gallery_scores):
    annotations, (folder, _) = tiny_flickr / FLICKR, gallery_scores
    scored = ScoreConfig(task="coco", annotations=annotations, predictions=folder, galleries="4x2")
    with pytest.raises(InputError, match="is the file of flickr30k, not of coco; give the task flickr30k"):
        run(scored)
    annotations.write_text(json.dumps(json.loads(annotations.read_text()) | {"dataset": "ours"}))
    assert run(scored)["questions"] == 48


def test_unusable_rankings_are_named(tiny_flickr, gallery_scores):
    folder, _ = gallery_scores
    scores = np.load(folder / "scores.npy")
    scores[5, 3] = np.nan
    np.save(folder / "scores.npy", scores)
    with pytest.raises(InputError, match="image 15 lacks scores"):
        run(ScoreConfig(task="flickr30k", annotations=tiny_flickr / FLICKR, predictions=folder, galleries="4x2"))
    whole = (folder / "scores.npy").read_bytes()
    broken = [b"", b"no array", b"PK\3\4", whole[:-4], whole[:60], whole.replace(b"(8, 10)", b"(8, 10 ")]
    for content in (*broken, whole.replace(b"<f4", b"|O8")):
        (folder / "scores.npy").write_bytes(content)
        with pytest.raises(InputError, match=r"scores\.npy cannot be read") as caught:
            run(ScoreConfig(task="flickr30k", annotations=tiny_flickr / FLICKR, predictions=folder, galleries="4x2"))
        assert "\n" not in str(caught.value)
    entries = json.loads((folder / "found.json").read_text())
    entries[0]["found"] = "1010.jpg"
    (folder / "found.json").write_text(json.dumps(entries))
    with pytest.raises(InputError, match=r"image 10 finds 1010\.jpg, which is not in its candidate set"):
        run(
            ScoreConfig(
                task="flickr30k", annotations=tiny_flickr / FLICKR, predictions=folder / "found.json", galleries="4x2"
            )
        )
    with pytest.raises(InputError, match="holds nothing of split restval"):
        run(ScoreConfig(task="flickr30k", annotations=tiny_flickr / FLICKR, predictions=folder, split="restval"))
