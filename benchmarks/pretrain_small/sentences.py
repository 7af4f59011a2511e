"""Sentences that only pre-training needs: captions of any form, wrong descriptions, statements with their questions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pumer.world.descriptions import Description, caption_about
from pumer.world.entailment import Hypothesis, hypothesis
from pumer.world.scenes import Scene, SceneConfig
from pumer.world.sentences import (
    PLURALS,
    POSITIONS,
    SIDES,
    VALUES,
    Question,
    answers,
    attributes_of,
    claim,
    pair,
    phrase,
    position,
    side_of,
)
from pumer.world.statements import (
    FEATURE_KINDS,
    Feature,
    Statement,
    claim_equality,
    claim_order,
    claim_presence,
    features,
    features_of,
)

NOUNS = (*PLURALS, *PLURALS.values(), "object", "objects", "one")
"""Last words of the phrases that name objects."""
OPENERS = "a an the another is are was at in of than or and , above below has have shows show sees"
"""Words, one of which the next part of a sentence starts with."""


@dataclass(frozen=True)
class Caption:
    """A sentence, whether the scene agrees with it, and the objects it mentions."""

    text: str
    true: bool
    targets: tuple[int, ...]
    anchors: tuple[int, ...] = ()


def caption(scene: Scene, rng: np.random.Generator) -> Caption:
    """Draw a caption, true of the scene half of the time."""
    if rng.integers(3) == 0:
        drawn = pair(scene, rng, lambda a, b: side_of(a, b) is not None, ())
        if drawn is not None:
            i, j, first, second = drawn
            side = side_of(scene.objects[i], scene.objects[j])
            claimed = side if rng.integers(2) else SIDES[int(rng.integers(4))]
            where = f"{claimed} of" if claimed in ("left", "right") else claimed
            return Caption(f"the {first} is {where} the {second}.", claimed == side, (i,), (j,))
    found, attributes = claim(scene, rng, ("colour", "shape", "texture", "size"), 2 + int(rng.integers(3)))
    if len(found) != 1:
        return Caption(f"there is a {phrase(attributes)}.", bool(found), found)
    place = position(scene, scene.objects[found[0]])
    claimed = place if rng.integers(3) else POSITIONS[int(rng.integers(9))]
    return Caption(f"there is a {phrase(attributes)} at the {claimed}.", claimed == place, found)


def misdescribe(scene: Scene, rng: np.random.Generator) -> Description:
    """Draw a caption that is false of the scene, but would be true if two of its objects changed places."""
    while True:
        i, j = rng.permutation(len(scene.objects))[:2].tolist()
        items = list(scene.objects)
        for place, other in ((i, scene.objects[j]), (j, scene.objects[i])):
            items[place] = replace(items[place], shape=other.shape, colour=other.colour, texture=other.texture)
        described = caption_about(replace(scene, objects=tuple(items)), rng, rng.permutation(len(items)).tolist())
        if not described.true_of(scene):
            return described


def hypothesis_with(label: str, scene: Scene, rng: np.random.Generator) -> Hypothesis | None:
    """Draw a sentence that has this label; None if none was found in a few attempts."""
    drawn = (hypothesis(scene, rng) for _ in range(30))
    return next((found for found in drawn if found.label(scene) == label), None)


def ask_of_both(left: Scene, right: Scene, rng: np.random.Generator) -> tuple[Statement, Question, Question] | None:
    """A statement about two images, and what it compares asked of each: the answer is the image's number.

    Returns:
        The statement, true about as often as false, and the two questions, both of its wording. None where one of the
        images has no such number, or no answer of the world names it.
    """
    kind, layout = FEATURE_KINDS[int(rng.integers(len(FEATURE_KINDS)))], left.config
    alike, feature, numbers = bool(rng.integers(2)), features(layout)[0], (-1, -1)
    for _ in range(40):
        feature = _feature_of((left, right)[int(rng.integers(2))], kind, rng)
        numbers = (feature.of(left), feature.of(right))
        if min(numbers) >= 0 and (numbers[0] == numbers[1]) == alike:
            break
    named = [answer for number in numbers if (answer := _answer(feature, number)) in answers(layout)]
    if len(named) < len(numbers):
        return None
    statement = _statement(feature, numbers, layout, rng)
    about = [feature.objects(scene) for scene in (left, right)]
    questions = [
        Question(statement.text, answer, f"statement/{kind}", "other", found)
        for answer, found in zip(named, about, strict=True)
    ]
    return statement, questions[0], questions[1]


def _feature_of(scene: Scene, kind: str, rng: np.random.Generator) -> Feature:
    """A feature, more often than not of something that the scene has: most features are of nothing."""
    if kind == "look" or rng.integers(4) == 0:
        able = features_of(kind, scene.config)
        return features(scene.config)[able[int(rng.integers(len(able)))]]
    item = scene.objects[int(rng.integers(len(scene.objects)))]
    names = rng.permutation(list(VALUES))[: 1 + (kind == "count") * int(rng.integers(2))].tolist()
    attributes = attributes_of(item, sorted(names, key=list(VALUES).index))
    return Feature(kind, attributes, position(scene, item) if kind == "place" else None)


def _answer(feature: Feature, number: int) -> str:
    """The name of a feature's number; "" for -1."""
    if number < 0:
        return ""
    if feature.kind == "look":
        return VALUES[str(feature.name)][number]
    return str(number) if feature.kind == "count" else ("no", "yes")[number]


def _statement(feature: Feature, numbers: tuple[int, int], layout: SceneConfig, rng: np.random.Generator) -> Statement:
    """A statement in any of the forms that fit the feature and two images' numbers, true or false."""
    if feature.kind == "count" and numbers[0] != numbers[1] and rng.integers(2):
        return claim_order(feature, ("more", "fewer")[int(rng.integers(2))], rng)
    if feature.kind == "place" and rng.integers(2):
        return claim_presence(feature, ("both", "not both", "any", "none")[int(rng.integers(4))])
    apart = numbers
    if numbers[0] == numbers[1]:
        most = layout.most if feature.kind == "count" else 1
        apart = (numbers[0], int((numbers[0] + 1 + rng.integers(most)) % (most + 1)))
    return claim_equality(feature, np.array(apart), bool(rng.integers(2)), rng)
