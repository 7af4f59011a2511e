"""Writes the built-in world's questions as VQAv2 files, for the reader that reads the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress, TaskID

from pumer.settings.data import QUESTIONS_PER_IMAGE, QuestionsConfig
from pumer.utils.files import read_json
from pumer.world.files import SIDECAR, describe_objects, dump, save_picture, sentence, whole
from pumer.world.scenes import Scene, SceneConfig, generator, make_scene
from pumer.world.sentences import ANSWERS, Question, ask

_DATE = "2026-01-01 00:00:00"
_LICENSE = {"url": "http://www.apache.org/licenses/LICENSE-2.0", "name": "Apache License, Version 2.0"}
_INFO = {
    "description": "Questions about the built-in world of pumer, in the format of VQA v2.0.",
    "url": "",
    "version": "1.0",
    "year": 2026,
    "contributor": "pumer",
    "date_created": _DATE,
}


def write_vqav2(
    root: str | Path,
    seed: int = 0,
    train: int = QuestionsConfig.train,
    val: int = QuestionsConfig.val,
    heldout: int = QuestionsConfig.heldout,
    questions_per_image: int = QUESTIONS_PER_IMAGE,
    scenes: SceneConfig | None = None,
    test: int = 0,
) -> Path:
    """Write the world's questions in VQAv2's files: train2014 and val2014 (the test split), and held-out combinations.

    Everything is written into a folder beside `root` that takes its name at the end, so that `root` is either whole or
    absent. What the format does not know stands in `scenes.json`: the objects of every picture and their boxes.

    Args:
        root: the folder to write; an existing world there is replaced.
        seed: seed of scenes and questions; pictures of different splits never share a scene.
        train: number of training questions.
        val: number of test questions.
        heldout: number of questions in `root/heldout`, a data set of its own with a val split only.
        questions_per_image: questions about each picture.
        scenes: what the pictures look like.
        test: number of questions without public answers, test2015, for result files.

    Returns:
        `root`.

    Raises:
        InputError: `root` holds something that is not a world.
    """
    root = Path(root)
    with whole(root) as aside, Progress(transient=True) as progress:
        told = progress.add_task(f"writing {root}", total=train + val + test + heldout)
        splits = [(aside, "train2014", "train", train), (aside, "val2014", "val", val)]
        splits += [(aside, "test2015", "test", test)] if test else []
        for folder, name, split, count in (*splits, (aside / "heldout", "val2014", "heldout", heldout)):
            _Split(folder, name, split, seed, questions_per_image, scenes).write(count, progress, told)
    return root


class _Split:
    """One split of the world on its way to files."""

    def __init__(
        self, folder: Path, name: str, split: str, seed: int, per_image: int, config: SceneConfig | None
    ) -> None:
        self.folder, self.name, self.split, self.seed = folder, name, split, seed
        self.per_image, self.config = per_image, config or SceneConfig()
        self.questions: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.scenes: dict[str, Any] = {}

    def write(self, count: int, progress: Progress, told: TaskID) -> None:
        """Write `count` questions, their pictures and the sidecar."""
        (self.folder / self.name).mkdir(parents=True)
        index = 0
        while len(self.questions) < count:
            rng = generator(self.seed, self.split, index)
            scene = make_scene(rng, self.config, held_out=self.split == "heldout")
            index += 1
            asked = self._ask(scene, rng, min(self.per_image, count - len(self.questions)))
            self._add(index, scene, asked, rng)
            progress.advance(told, len(asked))
        self._finish()

    def _ask(self, scene: Scene, rng: np.random.Generator, count: int) -> list[Question]:
        """Different questions about a scene; held-out ones concern one of the two held-out combinations."""
        found: dict[str, Question] = {}
        for _ in range(20 * count):
            question = ask(scene, rng)
            if self.split != "heldout" or {0, 1} & {*question.targets, *question.anchors}:
                found.setdefault(question.text, question)
            if len(found) == count:
                break
        return list(found.values())

    def _add(self, image_id: int, scene: Scene, asked: list[Question], rng: np.random.Generator) -> None:
        save_picture(scene, self.folder / self.name / f"COCO_{self.name}_{image_id:012d}.png")
        mentions = []
        for number, question in enumerate(asked):
            question_id = image_id * 1000 + number
            asked_as = {"image_id": image_id, "question": sentence(question.text), "question_id": question_id}
            self.questions.append(asked_as)
            self.annotations.append(
                {
                    "question_type": question.question_type,
                    "multiple_choice_answer": question.answer,
                    "answers": _annotators(question, rng),
                    "image_id": image_id,
                    "answer_type": question.answer_type,
                    "question_id": question_id,
                }
            )
            mentions.append({"question_id": question_id, "targets": question.targets, "anchors": question.anchors})
        self.scenes[str(image_id)] = {"objects": describe_objects(scene), "questions": mentions}

    def _finish(self) -> None:
        head = {"info": _INFO, "license": _LICENSE, "data_subtype": self.name}
        questions = head | {
            "task_type": "Open-Ended",
            "data_type": "mscoco",
            "questions": self.questions,
        }
        annotations = head | {"data_type": "mscoco", "annotations": self.annotations}
        dump(self.folder / f"v2_OpenEnded_mscoco_{self.name}_questions.json", questions)
        if self.split != "test":
            dump(self.folder / f"v2_mscoco_{self.name}_annotations.json", annotations)
        sidecar = self.folder / SIDECAR
        known = read_json(sidecar) if sidecar.exists() else {}
        dump(sidecar, known | {self.name: self.scenes})


def _annotators(question: Question, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Ten answers, eight to ten of them right: the right answer always has the full official score."""
    wrong = [answer for answer in _alternatives(question) if answer != question.answer]
    disagreeing = set(rng.permutation(10)[: int(rng.integers(3))].tolist())
    answers = []
    for number in range(10):
        answer, sure = question.answer, "yes"
        if number in disagreeing:
            answer, sure = wrong[int(rng.integers(len(wrong)))], "maybe"
        answers.append({"answer": answer, "answer_confidence": sure, "answer_id": number + 1})
    return answers


def _alternatives(question: Question) -> tuple[str, ...]:
    if question.answer_type == "yes/no":
        return ("yes", "no")
    if question.answer_type == "number":
        return tuple(answer for answer in ANSWERS if answer.isdigit())
    return tuple(answer for answer in ANSWERS if not answer.isdigit() and answer not in ("yes", "no"))
