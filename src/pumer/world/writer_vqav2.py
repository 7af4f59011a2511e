"""Writes the built-in world's questions as VQAv2 files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pumer.world.files import SIDECAR, dump, save_scene, sentence
from pumer.world.questions import ask
from pumer.world.scenes import Scene, SceneConfig, generator, make_scene
from pumer.world.sentences import Question, answers

_SPLITS = {"train": "train2014", "val": "val2014", "test": "test2015"}
_HEAD = {
    "info": {
        "description": "Questions about the built-in world of pumer, in the format of VQA v2.0.",
        "url": "",
        "version": "1.0",
        "year": 2026,
        "contributor": "pumer",
        "date_created": "2026-01-01 00:00:00",
    },
    "license": {"url": "http://www.apache.org/licenses/LICENSE-2.0", "name": "Apache License, Version 2.0"},
}


def fill(
    per_image: int,
    config: SceneConfig,
    root: Path,
    seed: int,
    sizes: Mapping[str, int],
    advance: Callable[[int], None],
) -> None:
    """Write train2014, val2014 (the test split), test2015 if there is any, and `heldout/` with a val2014 of its own."""
    sidecar = {
        name: _split(root, name, seed, split, sizes[split], per_image, config, advance)
        for split, name in _SPLITS.items()
        if sizes[split] or split != "test"
    }
    dump(root / SIDECAR, sidecar)
    name, folder = _SPLITS["val"], root / "heldout"
    dump(
        folder / SIDECAR,
        {name: _split(folder, name, seed, "heldout", sizes["heldout"], per_image, config, advance)},
    )


def _split(
    root: Path,
    name: str,
    seed: int,
    split: str,
    count: int,
    per_image: int,
    config: SceneConfig,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Write `count` questions and their images; returns the sidecar's entry by image."""
    (root / name).mkdir(parents=True)
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    sidecar: dict[str, Any] = {}
    image_id = 0
    while len(questions) < count:
        rng = generator(seed, split, image_id)
        scene = make_scene(rng, config, held_out=split == "heldout")
        image_id += 1
        mentions = []
        asked = _ask(scene, rng, min(per_image, count - len(questions)), split == "heldout")
        for question_id, question in enumerate(asked, start=image_id * 1000):
            questions.append({"image_id": image_id, "question": sentence(question.text), "question_id": question_id})
            annotations.append(_annotation(question, image_id, question_id, config, rng))
            mentions.append({"question_id": question_id, "targets": question.targets, "anchors": question.anchors})
        saved = save_scene(scene, root / name / f"COCO_{name}_{image_id:012d}.png")
        sidecar[str(image_id)] = saved | {"questions": mentions}
        advance(len(asked))
    head = _HEAD | {"data_subtype": name}
    content = head | {"task_type": "Open-Ended", "data_type": "mscoco", "questions": questions}
    dump(root / f"v2_OpenEnded_mscoco_{name}_questions.json", content)
    if split != "test":
        content = head | {"data_type": "mscoco", "annotations": annotations}
        dump(root / f"v2_mscoco_{name}_annotations.json", content)
    return sidecar


def _ask(scene: Scene, rng: np.random.Generator, count: int, held_out: bool) -> list[Question]:
    """Different questions about a scene; held-out ones are about one of the two held-out combinations."""
    found: dict[str, Question] = {}
    for _ in range(20 * count):
        question = ask(scene, rng)
        if not held_out or {0, 1} & {*question.targets, *question.anchors}:
            found.setdefault(question.text, question)
        if len(found) == count:
            break
    return list(found.values())


def _annotation(
    question: Question, image_id: int, question_id: int, config: SceneConfig, rng: np.random.Generator
) -> dict[str, Any]:
    """Ten answers, eight to ten of them right: the right answer always has the full official score."""
    wrong = [answer for answer in _alternatives(question, config) if answer != question.answer]
    disagreeing = set(rng.permutation(10)[: int(rng.integers(3))].tolist())
    given = []
    for number in range(10):
        answer, sure = question.answer, "yes"
        if number in disagreeing:
            answer, sure = wrong[int(rng.integers(len(wrong)))], "maybe"
        given.append({"answer": answer, "answer_confidence": sure, "answer_id": number + 1})
    return {
        "question_type": question.question_type,
        "multiple_choice_answer": question.answer,
        "answers": given,
        "image_id": image_id,
        "answer_type": question.answer_type,
        "question_id": question_id,
    }


def _alternatives(question: Question, config: SceneConfig) -> tuple[str, ...]:
    if question.answer_type == "yes/no":
        return ("yes", "no")
    numbers = tuple(answer for answer in answers(config) if answer.isdigit())
    if question.answer_type == "number":
        return numbers
    return tuple(answer for answer in answers(config) if answer not in (*numbers, "yes", "no"))
