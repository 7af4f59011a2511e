"""Sentences that follow from an image, contradict it, or are left open by it.

Every sentence names objects by something that images never show, such as the heaviest circle. If all circles are red,
the heaviest is red; if none is, it is not; if some are, the label is neutral. So every sentence can have each of the
three labels, and only the image decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pumer.world.scenes import SHAPES, Object, Scene
from pumer.world.sentences import (
    PLURALS,
    THIRDS,
    VALUES,
    Attributes,
    a,
    attributes_of,
    matching,
    phrase,
    plural,
    third,
)

LABELS = ("contradiction", "neutral", "entailment")
BLOCK = 30
"""Images from which a sentence chooses one of each label."""
HYPOTHESES_PER_IMAGE = 6
"""Most sentences about an image, a third of them of each label."""
_RULES = ("one", "one", "both", "both", "both", "either")
_TOPICS = (*VALUES, *THIRDS)
_ONE = (
    "the heaviest {}",
    "the oldest {}",
    "the newest {}",
    "the {} of ann",
    "the {} that ann sees",
    "the {} that was here first",
)
_TWO = ("{} heavy {}", "{} old {}", "{} new {}", "{} {} of ann", "{} {} that ann sees")


@dataclass(frozen=True)
class Hypothesis:
    """A sentence about some hidden choice among the objects of a group.

    Args:
        text: the sentence, lower case.
        rule: "one": the chosen object fits the claim; "both": both of two chosen ones; "either": at least one of two.
        group: attributes of the objects among which the choice is made.
        topic: what the claim is about: an attribute, "row" or "column".
        value: index of the claimed value.
    """

    text: str
    rule: str
    group: Attributes
    topic: str
    value: int

    @property
    def template(self) -> str:
        """Rule and topic."""
        return f"{self.rule}/{self.topic}"

    def fitting(self, scene: Scene) -> tuple[int, ...]:
        """Indices of the objects of the group that the claim holds for."""
        found = matching(scene, self.group)
        return tuple(index for index in found if _value(scene, scene.objects[index], self.topic) == self.value)

    def label(self, scene: Scene) -> str | None:
        """One of LABELS; None if the scene has fewer than two objects of the group, so that there is no choice."""
        found, fitting = len(matching(scene, self.group)), len(self.fitting(scene))
        if found < 2:
            return None
        chosen = 1 if self.rule == "one" else 2
        needed = 2 if self.rule == "both" else 1
        fewest, most = max(0, chosen - (found - fitting)), min(chosen, fitting)  # chosen ones that can fit
        return "entailment" if fewest >= needed else "contradiction" if most < needed else "neutral"


def triples(scenes: Sequence[Scene], rng: np.random.Generator) -> list[tuple[Hypothesis, tuple[int, ...]]]:
    """Sentences, each with three scenes: one that contradicts it, one that leaves it open, one it follows from.

    A sentence alone is no hint at its label, then, and a scene a weak one: each scene is used equally often for all.

    Args:
        scenes: to choose from, about BLOCK.
        rng: random numbers.

    Returns:
        Sentences with the indices of their scenes, in the order of LABELS. No scene has a sentence twice.
    """
    room = np.full((len(LABELS), len(scenes)), HYPOTHESES_PER_IMAGE // len(LABELS))
    found: dict[str, tuple[Hypothesis, tuple[int, ...]]] = {}
    failures = 0
    while failures < 100 and room.sum(1).min() > 0:
        order = rng.permutation(len(scenes)).tolist()
        drawn = hypothesis(scenes[max(order, key=lambda index: room[:, index].sum())], rng)
        places: dict[str, int] = {}
        for index in order if drawn.text not in found else ():
            label = drawn.label(scenes[index])
            if label is not None and room[LABELS.index(label), index]:
                places.setdefault(label, index)
        if len(places) < len(LABELS):
            failures += 1
            continue
        failures = 0
        chosen = tuple(places[label] for label in LABELS)
        room[range(len(LABELS)), chosen] -= 1
        found[drawn.text] = (drawn, chosen)
    return list(found.values())


def hypothesis(scene: Scene, rng: np.random.Generator) -> Hypothesis:
    """Draw a sentence in words that fit objects of a scene; it may have any label there, or none."""
    rule, topic = _RULES[int(rng.integers(len(_RULES)))], _TOPICS[int(rng.integers(len(_TOPICS)))]
    names = [name for name in VALUES if name != topic]
    first, second = (scene.objects[int(rng.integers(len(scene.objects)))] for _ in range(2))
    chosen = rng.permutation(len(names))[:2].tolist()
    group = attributes_of(first, [names[index] for index in sorted(chosen)])
    value = _value(scene, second, topic)
    hidden = _ONE if rule == "one" else _TWO
    text = _text(rule, hidden[int(rng.integers(len(hidden)))], group, topic, value)
    return Hypothesis(text, rule, group, topic, value)


def _value(scene: Scene, item: Object, topic: str) -> int:
    """An attribute, or the third of the image that holds the object's centre, from the left or from the top."""
    if topic in VALUES:
        return int(getattr(item, topic))
    return third(scene, item, topic)


def _text(rule: str, hidden: str, group: Attributes, topic: str, value: int) -> str:
    if topic in THIRDS:
        claim = f"in the {THIRDS[topic][value]} {topic}"
    elif topic == "shape":
        claim = a(SHAPES[value]) if rule == "one" else PLURALS[SHAPES[value]]
    else:
        claim = VALUES[topic][value]
    if rule == "one":
        return f"{hidden.format(phrase(group))} is {claim}."
    if rule == "both":
        return f"{hidden.format('both', plural(group))} are {claim}."
    return f"one or both of {hidden.format('the 2', plural(group))} are {claim}."
