"""The world's VQAv2 files: official fields, held-out combinations, whole or absent."""

import json
from pathlib import Path

import pytest
from PIL import Image

from pumer.world import write_vqav2
from pumer.world.scenes import COLOURS, NARROW, SHAPES

_QUESTION_KEYS = {"image_id", "question", "question_id"}
_ANNOTATION_KEYS = {"question_type", "multiple_choice_answer", "answers", "image_id", "answer_type", "question_id"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vqav2(tmp_path_factory.mktemp("data") / "world", seed=3, train=60, val=40, heldout=30)


def files(root: Path, split: str) -> tuple[dict, dict]:
    questions = json.loads((root / f"v2_OpenEnded_mscoco_{split}_questions.json").read_text())
    return questions, json.loads((root / f"v2_mscoco_{split}_annotations.json").read_text())


@pytest.mark.parametrize(
    ("part", "split", "count"), [(".", "train2014", 60), (".", "val2014", 40), ("heldout", "val2014", 30)]
)
def test_files_have_the_official_fields(world: Path, part: str, split: str, count: int) -> None:
    questions, annotations = files(world / part, split)
    assert set(questions) == {"info", "task_type", "data_type", "license", "data_subtype", "questions"}
    assert set(annotations) == {"info", "data_type", "license", "data_subtype", "annotations"}
    assert len(questions["questions"]) == len(annotations["annotations"]) == count
    for question, annotation in zip(questions["questions"], annotations["annotations"], strict=True):
        assert set(question) == _QUESTION_KEYS
        assert set(annotation) == _ANNOTATION_KEYS
        assert question["question_id"] == annotation["question_id"]
        assert question["image_id"] == annotation["image_id"]
        given = [answer["answer"] for answer in annotation["answers"]]
        assert [answer["answer_id"] for answer in annotation["answers"]] == list(range(1, 11))
        assert given.count(annotation["multiple_choice_answer"]) >= 8
        path = world / part / split / f"COCO_{split}_{question['image_id']:012d}.png"
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((96, 96), "RGB")
    assert len({question["question_id"] for question in questions["questions"]}) == count


def test_the_sidecar_names_objects_and_mentions(world: Path) -> None:
    scenes = json.loads((world / "scenes.json").read_text())
    assert set(scenes) == {"train2014", "val2014"}
    for image in scenes["val2014"].values():
        for question in image["questions"]:
            assert all(0 <= index < len(image["objects"]) for index in question["targets"])
        assert all(len(item["box"]) == 4 for item in image["objects"])


def test_held_out_questions_mention_a_held_out_combination(world: Path) -> None:
    combinations = {(COLOURS[NARROW.held_out(shape)], name) for shape, name in enumerate(SHAPES[:6])}
    for image in json.loads((world / "heldout" / "scenes.json").read_text())["val2014"].values():
        for question in image["questions"]:
            objects = [image["objects"][index] for index in (*question["targets"], *question["anchors"])]
            assert any((item["color"], item["shape"]) in combinations for item in objects)


def test_a_world_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    root = write_vqav2(tmp_path / "world", train=6, val=6, heldout=6)
    write_vqav2(root, train=12, val=6, heldout=6)
    assert len(files(root, "train2014")[0]["questions"]) == 12
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="give an empty or new folder"):
        write_vqav2(tmp_path / "mine", train=6, val=6, heldout=6)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
