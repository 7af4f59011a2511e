import json
from collections import Counter

import pytest
import torch
from torch.nn.functional import logsigmoid

from pumer.checkpoint import load_processor
from pumer.tasks import Example, VQAv2
from pumer.tasks.loading import make_inputs
from pumer.tasks.metrics import normalise
from pumer.utils.errors import InputError

QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
LABELS = ("blue", "green", "no", "red", "yes")


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_reads_the_official_files(tiny_vqa):
    examples = VQAv2.read(tiny_vqa, "val")
    assert len(examples) == 12
    example = examples[2]
    assert example.id == 1000
    assert example.text == "what colour is this?"
    assert example.images == (tiny_vqa / "val2014" / "COCO_val2014_000000000001.png",)
    assert example.answers == ("green",) * 10
    assert example.groups == {"answer_type": "other", "question_type": "what colour"}


def test_limit_spreads_over_the_split(tiny_vqa):
    everything = VQAv2.read(tiny_vqa, "val")
    assert VQAv2.read(tiny_vqa, "val", limit=5) == [everything[index] for index in (0, 2, 4, 7, 9)]
    assert VQAv2.read(tiny_vqa, "val", limit=12) == VQAv2.read(tiny_vqa, "val", limit=13) == everything


def test_test_split_has_no_answers(tiny_vqa):
    (tiny_vqa / QUESTIONS).rename(tiny_vqa / QUESTIONS.replace("val2014", "test2015"))
    (tiny_vqa / "val2014").rename(tiny_vqa / "test2015")
    for path in (tiny_vqa / "test2015").iterdir():
        path.rename(path.with_name(path.name.replace("val2014", "test2015")))
    examples = VQAv2.read(tiny_vqa, "test")
    assert len(examples) == 12
    assert examples[0].answers == ()
    task = VQAv2(LABELS)
    with pytest.raises(InputError, match="no public answers"):
        task.score(examples[0], "red")
    dev = json.loads((tiny_vqa / QUESTIONS.replace("val2014", "test2015")).read_text())
    dev["questions"] = dev["questions"][3:5]
    (tiny_vqa / QUESTIONS.replace("val2014", "test-dev2015")).write_text(json.dumps(dev))
    assert VQAv2.read(tiny_vqa, "test-dev") == examples[3:5]
    task.write_submission(tiny_vqa / "result.json", examples[:1], ["red"])
    assert json.loads((tiny_vqa / "result.json").read_text()) == [{"question_id": examples[0].id, "answer": "red"}]


def test_answers_stay_as_written(tiny_vqa):
    def change(content):
        content["annotations"][0]["answers"][0]["answer"] = " The\tTwo "
        for answer in content["annotations"][1]["answers"]:
            answer["answer"] = "Yes!"

    edit(tiny_vqa / ANNOTATIONS, change)
    first, second = VQAv2.read(tiny_vqa, "val", limit=12)[:2]
    assert Counter(first.answers) == {"red": 9, "The Two": 1}
    assert second.answers == ("Yes!",) * 10
    task, other = VQAv2(LABELS), VQAv2(LABELS, rule="published")
    assert [task.score(first, answer) for answer in ("2", "The RED.")] == pytest.approx([0.3, 1])
    assert [task.score(second, answer) for answer in ("yes", "Yes!")] == [0, 1]
    assert [other.score(second, answer) for answer in ("yes", "Yes!")] == [1, 1]
    assert task.targets([second])[0].tolist() == [0, 0, 0, 0, 1]
    assert task.candidates(first) == {"red", "The Two", "2"}
    assert task.candidates(second) == {"Yes!", "yes"}


def test_vocabulary_counts_normalised_answers_of_train_and_val(tiny_vqa):
    def change(content):
        for entry in content["annotations"]:
            if entry["multiple_choice_answer"] == "no":
                entry["multiple_choice_answer"] = "The NO."

    edit(tiny_vqa / ANNOTATIONS, change)
    answers = []
    for split in ("train2014", "val2014"):
        content = json.loads((tiny_vqa / f"v2_mscoco_{split}_annotations.json").read_text())
        answers += [normalise(entry["multiple_choice_answer"]) for entry in content["annotations"]]
    for minimum in (1, 6, 7, 12):
        frequent = {answer for answer in answers if answers.count(answer) >= minimum}
        assert VQAv2.vocabulary(tiny_vqa, minimum) == tuple(sorted(frequent))
    with pytest.raises(InputError, match="min_answer_count"):
        VQAv2.vocabulary(tiny_vqa, 100)


def test_a_split_without_answers_is_not_trained_on(tiny_vqa):
    with pytest.raises(InputError, match="example 0 has no public answer to train on"):
        VQAv2(LABELS).draw([Example(0, (), "")], 0, seed=0, epoch=0)


def test_soft_targets(tiny_vqa):
    answers = ("red",) * 2 + ("blue",) * 3 + ("yes",) * 4 + ("purple",)
    targets = VQAv2(LABELS).targets([Example(0, (), "", answers)])
    assert targets[0].tolist() == pytest.approx([0.9, 0, 0, 0.6, 1.0])


def test_loss_is_averaged_over_batch_and_answers():
    logits, targets = torch.randn(4, 5, dtype=torch.float64), torch.rand(4, 5, dtype=torch.float64)
    total = 0.0
    for row in range(4):
        for column in range(5):
            x, y = logits[row, column], targets[row, column]
            total -= float(y * logsigmoid(x) + (1 - y) * logsigmoid(-x))
    loss = VQAv2(LABELS).loss(logits.float(), {"targets": targets.float()})
    assert loss.item() == pytest.approx(total / 20, rel=1e-5)


def test_collate(tiny_vqa, tiny_vilt):
    examples = VQAv2.read(tiny_vqa, "val")[:3]
    processor = load_processor(tiny_vilt)
    batch = VQAv2(LABELS).collate(examples, make_inputs(processor, 12))
    words = processor.tokenizer([example.text for example in examples], padding=True)
    assert batch["inputs"]["input_ids"].tolist() == words["input_ids"]
    assert batch["inputs"]["pixel_values"].shape == (3, 3, 32, 32)
    assert batch["targets"].shape == (3, 5)
    cut = VQAv2(LABELS).collate(examples, make_inputs(processor, 4))
    assert cut["inputs"]["input_ids"].shape == (3, 4)
    fixed = VQAv2(LABELS).collate(examples, make_inputs(processor, 12, fixed_length=True))
    assert fixed["inputs"]["input_ids"].shape == (3, 12)
    assert fixed["inputs"]["attention_mask"].sum() == batch["inputs"]["attention_mask"].sum()


def test_blank_text_is_the_empty_question(tiny_vqa, tiny_vilt):
    examples = VQAv2.read(tiny_vqa, "val")[:2]
    processor = load_processor(tiny_vilt)
    batch = VQAv2(LABELS).collate(examples, make_inputs(processor, 12, blank="text"))
    cls, sep = processor.tokenizer.cls_token_id, processor.tokenizer.sep_token_id
    assert batch["inputs"]["input_ids"].tolist() == [[cls, sep]] * 2


def broken_json(root):
    (root / QUESTIONS).write_text('{"questions": [')


def no_list(root):
    (root / QUESTIONS).write_text("[]")


def missing_file(root):
    (root / ANNOTATIONS).unlink()


def missing_images(root):
    (root / "val2014").rename(root / "images")


def missing_image(root):
    (root / "val2014" / "COCO_val2014_000000000001.png").unlink()


def missing_key(root):
    edit(root / QUESTIONS, lambda content: content["questions"][3].pop("image_id"))


def missing_annotation(root):
    edit(root / ANNOTATIONS, lambda content: content["annotations"].pop(0))


def nine_answers(root):
    edit(root / ANNOTATIONS, lambda content: content["annotations"][0]["answers"].pop())


def answers_of_another_form(root):
    edit(root / ANNOTATIONS, lambda content: content["annotations"][0]["answers"][0].pop("answer"))


def folder_for_file(root):
    (root / ANNOTATIONS).unlink()
    (root / ANNOTATIONS).mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken_json, r"val2014_questions\.json is not valid JSON"),
        (no_list, r"val2014_questions\.json holds no list 'questions'"),
        (missing_file, r"val2014_annotations\.json does not exist"),
        (folder_for_file, r"val2014_annotations\.json cannot be read: Is a directory"),
        (missing_images, r"image folder .*val2014 does not exist"),
        (missing_image, r"image .*COCO_val2014_000000000001\.jpg does not exist; 1 images of split val are missing"),
        (missing_key, r"entry 3 of 'questions' has no 'image_id' \(int\)"),
        (missing_annotation, r"question 0 has no entry in .*annotations\.json"),
        (answers_of_another_form, r"question 0 has 9 answers in .*annotations\.json"),
        (nine_answers, r"question 0 has 9 answers in .*annotations\.json"),
    ],
)
def test_damage_is_named_in_one_line(tiny_vqa, damage, message):
    damage(tiny_vqa)
    with pytest.raises(InputError, match=message) as caught:
        VQAv2.read(tiny_vqa, "val")
    assert "\n" not in str(caught.value)


def test_missing_folder_and_unknown_split(tmp_path, tiny_vqa):
    with pytest.raises(InputError, match=r"data folder .*nowhere does not exist"):
        VQAv2.read(tmp_path / "nowhere", "val")
    with pytest.raises(InputError, match=r"split must be one of train, val, test, test-dev, train\+vg, not 'dev'"):
        VQAv2.read(tiny_vqa, "dev")
    with pytest.raises(InputError, match="limit must be at least 1 or null, not 0"):
        VQAv2.read(tiny_vqa, "val", limit=0)
