"""Questions of Visual Genome (homes.cs.washington.edu/~ranjay/visualgenome) as more training data for VQAv2."""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from pumer.tasks.base import Example
from pumer.tasks.records import hold, listed, once
from pumer.tasks.vqa_accuracy import normalise
from pumer.utils.errors import InputError

FILES = ("question_answers.json", "image_data.json")
_FOLDERS = ("VG_100K", "VG_100K_2")
_ANNOTATORS = 10


def read_questions(root: Path, answers: Container[str], left_out: Container[int]) -> list[Example]:
    """The questions whose answer VQAv2 knows, about images that VQAv2 does not evaluate on.

    Files under the data folder, as downloaded and unzipped, beside VQAv2's::

        question_answers.json
        image_data.json
        {VG_100K,VG_100K_2}/<image_id>.jpg

    Args:
        root: data folder.
        answers: normalised answers to keep; others would only teach that no answer of the vocabulary is right.
        left_out: COCO's numbers of images to leave out.

    Returns:
        Examples with ids such as "vg986768", whose one answer counts as given by all annotators.

    Raises:
        InputError: for a missing or broken file; the message names it.
    """
    images = _entries(root / FILES[1], {"image_id": int})
    once(root / FILES[1], "image_id", (image["image_id"] for image in images))
    paths = {image["image_id"]: _image(image, root, left_out) for image in images}
    examples = []
    for entry in _entries(root / FILES[0], {}):
        for question in _questions(entry, root):
            answer, number = normalise(question["answer"]), question["image_id"]
            if number not in paths:
                raise InputError(f"{root / FILES[1]} has no image {number}, which {FILES[0]} asks about")
            path = paths[number]
            if path is not None and answer in answers:
                groups = {"answer_type": "other", "question_type": "visual genome"}
                name = f"vg{question['qa_id']}"
                examples.append(Example(name, (path,), question["question"], (answer,) * _ANNOTATORS, groups))
    once(root / FILES[0], "qa_id", (str(example.id).removeprefix("vg") for example in examples))
    return examples


def _image(entry: Mapping[str, Any], root: Path, left_out: Container[int]) -> Path | None:
    """Where an image is; None if it is to be left out."""
    folder, name = str(entry.get("url")).split("/")[-2:] if "/" in str(entry.get("url")) else ("", "")
    if folder not in _FOLDERS or not name:
        raise InputError(f"{root / FILES[1]}: 'url' of image {entry['image_id']} must end like VG_100K/1.jpg")
    of_coco = entry.get("coco_id")
    if not isinstance(of_coco, int | None):
        raise InputError(f"{root / FILES[1]}: 'coco_id' of image {entry['image_id']} must be a number or null")
    return None if of_coco in left_out else root / folder / name


def _questions(entry: Mapping[str, Any], root: Path) -> list[dict[str, Any]]:
    found = entry.get("qas")
    if not isinstance(found, list):
        raise InputError(f"{root / FILES[0]}: an entry has no list 'qas'")
    kinds = {"qa_id": int, "image_id": int, "question": str, "answer": str}
    return [hold(question, kinds, f"{root / FILES[0]}: a question") for question in found]


def _entries(path: Path, kinds: Mapping[str, type]) -> list[dict[str, Any]]:
    found = enumerate(listed(path, None, f"{' and '.join(FILES)} for split train+vg"))
    return [hold(entry, kinds, f"{path}: entry {index}") for index, entry in found]
