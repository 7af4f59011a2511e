"""Questions of Visual Genome (homes.cs.washington.edu/~ranjay/visualgenome) as more training data for VQAv2."""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from pumer.tasks.annotations import check_unique, checked, read_entries
from pumer.tasks.base import Example
from pumer.tasks.metrics import normalise
from pumer.utils.errors import InputError

FILES = QUESTIONS, IMAGES = ("question_answers.json", "image_data.json")
_NEEDED = f"{' and '.join(FILES)} for split train+vg"
_FOLDERS = ("VG_100K", "VG_100K_2")
_QUESTION = {"qa_id": int, "image_id": int, "question": str, "answer": str}
_GROUPS = {"answer_type": "other", "question_type": "visual genome"}
_ANNOTATORS = 10


def read_questions(root: Path, answers: Container[str], left_out: Container[int]) -> list[Example]:
    """The questions whose answer is among VQAv2's normalised `answers`, but for images with COCO numbers in `left_out`.

    Other answers would only teach that no answer of the vocabulary is right. Files under the data folder, as downloaded
    and unzipped, beside VQAv2's::

        question_answers.json
        image_data.json
        {VG_100K,VG_100K_2}/<image_id>.jpg

    Ids are such as "vg986768"; the one answer of a question counts as given by all annotators.
    """
    images = read_entries(root / IMAGES, None, {"image_id": int}, _NEEDED, unique="image_id")
    paths = {image["image_id"]: _path(image, root, left_out) for image in images}
    examples = []
    for entry in read_entries(root / QUESTIONS, None, {"qas": list}, _NEEDED):
        for found in entry["qas"]:
            question = checked(found, _QUESTION, f"{root / QUESTIONS}: a question")
            answer, number = normalise(question["answer"]), question["image_id"]
            if number not in paths:
                raise InputError(f"{root / IMAGES} has no image {number}, which {QUESTIONS} asks about")
            path = paths[number]
            if path is not None and answer in answers:
                given = (answer,) * _ANNOTATORS
                examples.append(Example(f"vg{question['qa_id']}", (path,), question["question"], given, _GROUPS))
    check_unique(root / QUESTIONS, "qa_id", (str(example.id).removeprefix("vg") for example in examples))
    return examples


def _path(image: Mapping[str, Any], root: Path, left_out: Container[int]) -> Path | None:
    """The image's file; None if it is to be left out."""
    *_, folder, name = ("", "", *str(image.get("url")).split("/"))
    if folder not in _FOLDERS or not name:
        raise InputError(f"{root / IMAGES}: 'url' of image {image['image_id']} must end like VG_100K/1.jpg")
    coco_id = image.get("coco_id")
    if not isinstance(coco_id, int | None):
        raise InputError(f"{root / IMAGES}: 'coco_id' of image {image['image_id']} must be a number or null")
    return None if coco_id in left_out else root / folder / name
