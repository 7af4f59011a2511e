"""Sentences of pre-training: they are true, false or labelled as they claim."""

import re
from collections import defaultdict

import numpy as np

from benchmarks.pretrain_small.sentences import ask_of_both, caption, hypothesis_with, misdescribe
from pumer.world import scenes, sentences
from pumer.world.entailment import LABELS
from pumer.world.scenes import COLOURS, SHAPES, SIZES, TEXTURES
from pumer.world.sentences import VALUES


def fits(item: scenes.Object, words: str) -> bool:
    known = {SHAPES[item.shape], COLOURS[item.colour], SIZES[item.size], TEXTURES[item.texture], "object"}
    return set(words.split()) <= known


def test_captions_are_labelled_true_or_false() -> None:
    true = []
    for index in range(300):
        rng = scenes.generator(0, "train", index)
        scene = scenes.make_scene(rng)
        made = caption(scene, rng)
        true.append(made.true)
        if match := re.fullmatch(r"there is a ([^.]*?)( at the (.*))?\.", made.text):
            found = [item for item in scene.objects if fits(item, match[1])]
            claimed = bool(found) and (not match[3] or any(sentences.position(scene, i) == match[3] for i in found))
            assert claimed == made.true, made
    assert 0.35 < np.mean(true) < 0.65


def test_a_wrong_description_is_wrong() -> None:
    for index in range(20):
        rng = scenes.generator(1, "val", index)
        scene = scenes.make_scene(rng)
        assert not misdescribe(scene, rng).true_of(scene)


def test_a_sentence_of_a_wanted_label() -> None:
    found = []
    for index in range(5):
        rng = scenes.generator(3, "val", index)
        scene = scenes.make_scene(rng)
        for label in LABELS:
            if made := hypothesis_with(label, scene, rng):
                assert made.label(scene) == label
                found.append(label)
    assert set(found) == set(LABELS)


def test_what_a_statement_compares_is_asked_of_each_image() -> None:
    forms: dict[str, list[bool]] = defaultdict(list)
    for index in range(150):
        rng = scenes.generator(0, "val", index)
        pair = [scenes.make_scene(rng) for _ in range(2)]
        asked = ask_of_both(*pair, rng)
        if asked is None:
            continue
        statement, *questions = asked
        for scene, question in zip(pair, questions, strict=True):
            value = statement.feature.of(scene)
            name = statement.feature.name
            assert question.text == statement.text
            assert (
                question.answer
                == {
                    "count": str(value),
                    "place": "yes" if value else "no",
                    "look": VALUES[name][value] if name else None,
                }[statement.feature.kind]
            )
            assert len(question.targets) == {"count": value, "look": 1}.get(
                statement.feature.kind, len(question.targets)
            )
        forms[statement.feature.kind].append(statement.true_of(*pair))
    for true in forms.values():
        assert 0.3 < sum(true) / len(true) < 0.7, forms
    assert len(forms) == 3
