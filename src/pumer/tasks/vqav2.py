"""VQAv2 in its official files (visualqa.org): open questions about one image, ten answers each."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from pumer.backbones import Head
from pumer.data.storage import images_in
from pumer.settings.common import Rule
from pumer.tasks import visual_genome
from pumer.tasks.annotations import check_split, image_file, read_entries
from pumer.tasks.base import Example, Task, spread
from pumer.tasks.metrics import normalise, soft_score, stripped, vqa_accuracy
from pumer.utils.errors import InputError

_FOLDERS = {"train": "train2014", "val": "val2014", "test": "test2015", "test-dev": "test2015"}
_FILES = _FOLDERS | {"test-dev": "test-dev2015"}
_WITHOUT_ANSWERS = ("test", "test-dev")
WITH_VISUAL_GENOME = "train+vg"
_ANNOTATORS = 10
_QUESTION = {"question_id": int, "image_id": int, "question": str}
_ANNOTATION = {
    "question_id": int,
    "multiple_choice_answer": str,
    "answers": list,
    "answer_type": str,
    "question_type": str,
}


class VQAv2(Task):
    """Visual question answering on the official VQAv2 files.

    The answers are a closed vocabulary with soft scores; the loss is binary cross-entropy averaged over batch
    **and** answers (docs/paper.md), the score the accuracy over all ten annotators that the official script gives.

    Files under the data folder, as downloaded and unzipped::

        v2_OpenEnded_mscoco_{train2014,val2014,test2015,test-dev2015}_questions.json
        v2_mscoco_{train2014,val2014}_annotations.json
        {train2014,val2014,test2015}/COCO_{train2014,val2014,test2015}_<12 digits>.jpg   (or .png)

    Split "test-dev" asks some of the questions of "test". With `data.train=train+vg` the questions of Visual Genome
    are trained on as well (`pumer.tasks.visual_genome`), but for those about images of the val split.
    """

    name: ClassVar[str] = "vqav2"
    head_kind: ClassVar[Head] = "question_answering"
    files: ClassVar[str] = "the official v2_*_questions.json, v2_*_annotations.json and image folders"
    splits: ClassVar[tuple[str, ...]] = tuple(_FOLDERS)
    groups: ClassVar[tuple[str, ...]] = ("answer_type", "question_type")
    template: ClassVar[str | None] = "question_type"
    result_keys: ClassVar[tuple[str, str]] = ("question_id", "answer")

    def __init__(self, labels: Sequence[str], rule: Rule = "official") -> None:
        """Bind to the normalised answers, one per column; `rule` as of `pumer.tasks.metrics.vqa_accuracy`."""
        super().__init__(labels)
        self.rule = rule
        self._column = {label: column for column, label in enumerate(self.labels)}

    @classmethod
    def examples(cls, root: Path, split: str, limit: int | None = None) -> list[Example]:
        """Read a split; see `Task.read`. Scores are grouped by `answer_type` and `question_type`."""
        if split == WITH_VISUAL_GENOME:
            answers = set(cls.vocabulary(root, minimum=1))
            evaluated_on = {entry["image_id"] for entry in _questions(_question_file(root, "val"))}
            more = visual_genome.read_questions(root, answers, evaluated_on)
            return list(spread(cls.examples(root, "train") + more, limit))
        questions = spread(_questions(_question_file(root, split)), limit)
        file = None if split in _WITHOUT_ANSWERS else _annotation_file(root, split)
        answered = {} if file is None else _annotations(file)
        folder = root / _FOLDERS[split]
        names, examples = images_in(folder), []
        for entry in questions:
            number = entry["question_id"]
            image = image_file(folder, f"COCO_{folder.name}_{entry['image_id']:012d}", names)
            truth = {} if file is None else _truth(number, answered, file)
            examples.append(Example(number, (image,), entry["question"], **truth))
        return examples

    @classmethod
    def annotation_files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The questions and, but for the test splits, the annotations; see `Task.annotation_files`."""
        if split == WITH_VISUAL_GENOME:
            return (*cls.annotation_files(root, "train"), *(root / name for name in visual_genome.FILES))
        questions = _question_file(root, split)
        return (questions,) if split in _WITHOUT_ANSWERS else (questions, _annotation_file(root, split))

    @classmethod
    def vocabulary(cls, root: Path, minimum: int = 9) -> tuple[str, ...]:
        """Normalised `multiple_choice_answer`s, sorted, that occur `minimum` times in train and val together.

        The official files have 3129. Refuses missing files, and a minimum that no answer reaches.
        """
        files = [_annotation_file(root, split) for split in ("train", "val")]
        for file in files:
            if root.is_dir() and not file.exists():
                hint = (
                    "it is needed with data.eval=null too, because answers are those of train and val: give data.root"
                )
                raise InputError(f"{file} does not exist; {hint}")
        entries = (entry for file in files for entry in _annotations(file).values())
        counts = Counter(normalise(entry["multiple_choice_answer"]) for entry in entries)
        answers = tuple(sorted(answer for answer, count in counts.items() if count >= minimum and answer))
        if not answers:
            raise InputError(f"no answer occurs {minimum} times in {root}; give data.min_answer_count=1 or more data")
        return answers

    def targets(self, examples: Sequence[Example]) -> Tensor:
        """Soft scores (B, A) of all answers: 0, 0.3, 0.6, 0.9 or 1 by the number of agreeing annotators.

        Here the annotators' answers are always normalised, as the labels are: an answer that all of them wrote alike,
        but not in the normal form, would otherwise teach that every label is wrong.
        """
        targets = torch.zeros(len(examples), len(self.labels))
        for row, example in enumerate(examples):
            for answer, matches in Counter(map(normalise, example.answers)).items():
                if answer in self._column:
                    targets[row, self._column[answer]] = soft_score(matches)
        return targets

    def loss(self, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Binary cross-entropy with soft scores, averaged over batch and answers."""
        return binary_cross_entropy_with_logits(logits.float(), batch["targets"])

    def score(self, example: Example, answer: str) -> float:
        """VQA accuracy of one answer."""
        if not example.answers:
            raise InputError(f"question {example.id} has no public answers; score the submission file on the server")
        return vqa_accuracy(answer, example.answers, self.rule)

    def candidates(self, example: Example) -> set[str]:
        """The annotators' answers as written and normalised; see `Task.candidates`."""
        return {*example.answers, *map(normalise, example.answers)}

    @classmethod
    def truth(cls, annotations: Path, questions: Path | None = None, split: str = "test") -> list[Example]:
        """All annotated questions, or those of a file of questions; see `Task.truth`."""
        answered = _annotations(annotations)
        numbers = answered if questions is None else [entry["question_id"] for entry in _questions(questions)]
        return [Example(number, (), "", **_truth(number, answered, annotations)) for number in numbers]


def _truth(number: int, answered: Mapping[int, Any], path: Path) -> dict[str, Any]:
    """The ten answers to a question, its groups and its image."""
    if number not in answered:
        raise InputError(f"question {number} has no entry in {path}")
    entry = answered[number]
    given = [answer.get("answer") if isinstance(answer, dict) else None for answer in entry["answers"]]
    if len(given) != _ANNOTATORS or not all(isinstance(answer, str) for answer in given):
        count = sum(isinstance(answer, str) for answer in given)
        raise InputError(f"question {number} has {count} answers in {path}; official files give ten")
    groups = {name: entry[name] for name in VQAv2.groups}
    return {"answers": tuple(map(stripped, given)), "groups": groups, "source": str(entry.get("image_id", ""))}


def _questions(path: Path) -> list[dict[str, Any]]:
    return read_entries(path, "questions", _QUESTION, VQAv2.files, unique="question_id")


def _annotations(path: Path) -> dict[int, dict[str, Any]]:
    """The annotations by the number of their question."""
    entries = read_entries(path, "annotations", _ANNOTATION, VQAv2.files, unique="question_id")
    return {entry["question_id"]: entry for entry in entries}


def _question_file(root: Path, split: str) -> Path:
    check_split(split, (*_FILES, WITH_VISUAL_GENOME))
    return root / f"v2_OpenEnded_mscoco_{_FILES[split]}_questions.json"


def _annotation_file(root: Path, split: str) -> Path:
    return root / f"v2_mscoco_{_FILES[split]}_annotations.json"
