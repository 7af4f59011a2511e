"""Captions that single a scene out: each names two or three objects, their positions or the relation between them.

The captions of an image are about different objects of it, as far as there are enough. A caption can be checked against
any scene, which makes it possible to count captions that fit several scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pumer.world.scenes import Object, Scene
from pumer.world.sentences import TRIPLES, Attributes, a, attributes_of, matching, phrase, position, side_of

CAPTIONS_PER_IMAGE = 5


@dataclass(frozen=True)
class Place:
    """An object with these attributes stands at `place`, one of POSITIONS."""

    attributes: Attributes
    place: str

    def true_of(self, scene: Scene) -> bool:
        """Whether the scene has such an object there."""
        return any(position(scene, scene.objects[i]) == self.place for i in matching(scene, self.attributes))


@dataclass(frozen=True)
class Relation:
    """An object with these attributes stands on `side` of one with `other` attributes."""

    attributes: Attributes
    side: str
    other: Attributes

    def true_of(self, scene: Scene) -> bool:
        """Whether the scene has two such objects."""
        firsts, seconds = (matching(scene, names) for names in (self.attributes, self.other))
        items = scene.objects
        return any(i != j and side_of(items[i], items[j]) == self.side for i in firsts for j in seconds)


@dataclass(frozen=True)
class Description:
    """A caption and what it claims.

    Args:
        parts: what it says, lower case, in as many parts as it makes claims.
        claims: what each part claims.
        targets: indices of the objects it names.
        named: the attributes it names objects by, in the order of their phrases.
    """

    parts: tuple[str, ...]
    claims: tuple[Place | Relation, ...]
    targets: tuple[int, ...]
    named: tuple[Attributes, ...]

    @property
    def text(self) -> str:
        """The caption."""
        return "".join(self.parts)

    def true_of(self, scene: Scene) -> bool:
        """Whether the caption fits a scene."""
        return all(claim.true_of(scene) for claim in self.claims)


def describe_scene(scene: Scene, rng: np.random.Generator, count: int = CAPTIONS_PER_IMAGE) -> list[Description]:
    """Draw different captions of a scene.

    Returns:
        `count` captions, all true; each is about two or three objects that none before it was about, while there are
        three left.
    """
    order = rng.permutation(len(scene.objects)).tolist()
    found: dict[str, Description] = {}
    while len(found) < count:
        start = 3 * len(found) % len(order)
        description = caption_about(scene, rng, order[start:] + order[:start])
        found.setdefault(description.text, description)
    return list(found.values())


def caption_about(scene: Scene, rng: np.random.Generator, order: Sequence[int]) -> Description:
    """A caption about the first two or three objects of `order`, in one of three forms."""
    i, j, k = order[:3] if len(order) > 2 else (*order[:2], order[0])
    first, second, third = (scene.objects[index] for index in (i, j, k))
    side = side_of(first, second)
    form = int(rng.integers(3))
    names = [_pick(item, rng) for item in (first, second, third)]
    nouns = [a(phrase(attributes)) for attributes in names]
    here = Place(names[0], position(scene, first))
    if side is None or form == 0:
        there = Place(names[1], position(scene, second))
        parts = (f"{nouns[0]} is at the {here.place}", f", and {nouns[1]} is at the {there.place}.")
        return Description(parts, (here, there), (i, j), tuple(names[:2]))
    relation = Relation(names[0], side, names[1])
    where = f"{side} of" if side in ("left", "right") else side
    if form == 1:
        parts = (f"{nouns[0]} at the {here.place}", f" is {where} {nouns[1]}.")
        return Description(parts, (here, relation), (i, j), tuple(names[:2]))
    there = Place(names[2], position(scene, third))
    parts = (f"{nouns[0]} is {where} {nouns[1]}", f", and {nouns[2]} is at the {there.place}.")
    return Description(parts, (relation, there), tuple(dict.fromkeys((i, j, k))), tuple(names))


def _pick(item: Object, rng: np.random.Generator) -> Attributes:
    return attributes_of(item, TRIPLES[int(rng.integers(len(TRIPLES)))])


def ambiguous(candidates: Sequence[tuple[Scene, Sequence[Description]]]) -> tuple[int, int]:
    """Count the captions of a candidate set that fit another of its scenes too.

    Args:
        candidates: scenes with their captions.

    Returns:
        The number of captions that are true of another scene, and of scenes all of whose captions are true of one
        other scene.
    """
    captions = scenes = 0
    for number, (_, described) in enumerate(candidates):
        others = [scene for index, (scene, _) in enumerate(candidates) if index != number]
        fits = np.array([[description.true_of(other) for other in others] for description in described])
        captions += int(fits.any(axis=1).sum())
        scenes += bool(fits.all(axis=0).any())
    return captions, scenes
