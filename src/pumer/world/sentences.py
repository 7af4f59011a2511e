"""Questions of the narrow layout, and the phrases that all sentences of the world are made of.

A question's `question_type` is its template; its part before "/" is one of KINDS. Answers are balanced within a
template, and most are open-ended: without the image, or without the question, little can be guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations, product

import numpy as np

from pumer.world.scenes import COLOURS, NARROW, SHAPES, SIZES, TEXTURES, Object, Scene, SceneConfig

KINDS = ("attribute", "position", "counting", "existence", "comparison", "relation")
POSITIONS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
SIDES = ("left", "right", "above", "below")
THIRDS = {"row": ("top", "center", "bottom"), "column": ("left", "center", "right")}

Attributes = tuple[tuple[str, int], ...]
"""Some attributes of an object, in the order in which they are said: ((name, index of its value), ...)."""
Template = Callable[[Scene, np.random.Generator], "Question | None"]


def _names(*lists: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(names.split()) for names in lists)


VALUES = {"size": SIZES, "texture": TEXTURES, "colour": COLOURS, "shape": SHAPES}
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}


@cache
def answers(layout: SceneConfig = NARROW) -> tuple[str, ...]:
    """Every answer to a question about scenes of a layout, sorted as an answer vocabulary is."""
    seen = {value for name in ("colour", "shape", "texture") for value in VALUES[name][: layout.values[name]]}
    return tuple(sorted({*seen, *POSITIONS, *SIDES, "yes", "no", *map(str, range(layout.most + 1))}))


TRIPLES = _names("size colour shape", "texture colour shape", "size texture shape", "size texture colour")
"""The attributes by which captions name objects."""
_PAIRS = _names("colour shape", "colour shape", "size shape", "texture shape", "size colour", "texture colour")
_SHORT = (("shape",), ("colour",), *_PAIRS)
_LONG = (*TRIPLES, tuple(VALUES))
COUNTED = (*combinations(VALUES, 1), *combinations(VALUES, 2))


@dataclass(frozen=True)
class Question:
    """A question, its answer, and the indices of the objects it is about.

    Args:
        text: the question, lower case.
        answer: the one right answer.
        question_type: the template's name.
        answer_type: "yes/no", "number" or "other", as in VQAv2.
        targets: objects the question asks about, such as all that are counted.
        anchors: objects it only refers to.
    """

    text: str
    answer: str
    question_type: str
    answer_type: str
    targets: tuple[int, ...]
    anchors: tuple[int, ...] = ()


def phrase(attributes: Attributes | Mapping[str, int]) -> str:
    """A noun phrase such as "small red circle"; without a shape the noun is "object"."""
    return _adjectives(attributes) + (SHAPES[dict(attributes)["shape"]] if "shape" in dict(attributes) else "object")


def plural(attributes: Attributes | Mapping[str, int]) -> str:
    """The plural of `phrase`, such as "small red circles"."""
    shape = dict(attributes).get("shape")
    return _adjectives(attributes) + ("objects" if shape is None else PLURALS[SHAPES[shape]])


def _adjectives(attributes: Attributes | Mapping[str, int]) -> str:
    given = dict(attributes)
    return "".join(f"{VALUES[name][given[name]]} " for name in ("size", "texture", "colour") if name in given)


def a(noun: str) -> str:
    """The noun with its article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def attributes_of(item: Object, names: Sequence[str]) -> Attributes:
    """These attributes of an object."""
    return tuple((name, getattr(item, name)) for name in names)


def matching(scene: Scene, attributes: Attributes | Mapping[str, int]) -> tuple[int, ...]:
    """Indices of the objects that have all of `attributes`."""
    given = dict(attributes).items()
    return tuple(i for i, o in enumerate(scene.objects) if all(getattr(o, name) == value for name, value in given))


def position(scene: Scene, item: Object) -> str:
    """The part of the image that holds the object's centre, one of POSITIONS."""
    side, (x, y) = 2 * scene.config.image_size, item.centre
    return POSITIONS[3 * (3 * y // side) + 3 * x // side]


def third(scene: Scene, item: Object, axis: str) -> int:
    """Which third of the image holds the object's centre, along one of THIRDS."""
    return 3 * item.centre[("column", "row").index(axis)] // (2 * scene.config.image_size)


def side_of(item: Object, other: Object) -> str | None:
    """On which of SIDES of `other` the object is; None where this is ambiguous."""
    dx, dy = (a - b for a, b in zip(item.centre, other.centre, strict=True))
    if abs(dx) >= 2 * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) >= 2 * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def describe(scene: Scene, rng: np.random.Generator, index: int, hidden: tuple[str, ...] = ()) -> str | None:
    """A noun phrase that fits this object alone and names none of the `hidden` attributes, or None."""
    item = scene.objects[index]
    for subsets in (_SHORT, _LONG):
        allowed = _allowed(subsets, hidden)
        for pick in rng.permutation(len(allowed)).tolist():
            attributes = {name: getattr(item, name) for name in allowed[pick]}
            if len(matching(scene, attributes)) == 1:
                return phrase(attributes)
    return None


@cache
def _allowed(subsets: tuple[tuple[str, ...], ...], hidden: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [names for names in subsets if not set(names) & set(hidden)]


def _ask_about_one(text: str, question_type: str, name: str | None = None) -> Template:
    """A template that asks for an attribute of one object, or for its position."""

    def ask(scene: Scene, rng: np.random.Generator) -> Question | None:
        index = int(rng.integers(len(scene.objects)))
        described = describe(scene, rng, index, (name,) if name else ())
        if described is None:
            return None
        item = scene.objects[index]
        answer = VALUES[name][getattr(item, name)] if name else position(scene, item)
        return Question(text.format(described), answer, question_type, "other", (index,))

    return ask


def _counting(scene: Scene, rng: np.random.Generator) -> Question | None:
    most = scene.config.most
    choices: list[list[tuple[Attributes, tuple[int, ...]]]] = [[] for _ in range(most + 1)]
    names = COUNTED[int(rng.integers(len(COUNTED)))]
    for values in product(*(range(scene.config.values[name]) for name in names)):
        attributes = tuple(zip(names, values, strict=True))
        found = matching(scene, attributes)
        if len(found) <= most:
            choices[len(found)].append((attributes, found))
    count = int(rng.integers(most + 1))
    if not choices[count]:
        return None
    attributes, found = choices[count][int(rng.integers(len(choices[count])))]
    return Question(f"how many {plural(attributes)} are there?", str(count), "counting", "number", found)


def _existence(scene: Scene, rng: np.random.Generator) -> Question | None:
    wanted = bool(rng.integers(2))
    found, attributes = claim(scene, rng, ("colour", "shape", "texture", "size"), 2 + int(rng.integers(2)))
    if bool(found) != wanted:
        return None
    noun = phrase(attributes)
    return Question(f"is there {a(noun)}?", "yes" if found else "no", "existence", "yes/no", found)


def claim(
    scene: Scene, rng: np.random.Generator, names: tuple[str, ...], count: int
) -> tuple[tuple[int, ...], dict[str, int]]:
    """Some attributes of an object or, half of the time, a mixture that no object has though others have its parts."""
    first = scene.objects[int(rng.integers(len(scene.objects)))]
    used = [names[i] for i in sorted(rng.permutation(len(names))[:count].tolist())]
    attributes = {name: getattr(first, name) for name in used}
    if rng.integers(2):
        return matching(scene, attributes), attributes
    for _ in range(10):
        other = scene.objects[int(rng.integers(len(scene.objects)))]
        name = used[int(rng.integers(count))]
        mixed = attributes | {name: getattr(other, name)}
        if not matching(scene, mixed):
            return (), mixed
    for _ in range(10):
        name = used[int(rng.integers(count))]
        mixed = attributes | {name: int(rng.integers(scene.config.values[name]))}
        if not matching(scene, mixed):
            return (), mixed
    return matching(scene, attributes), attributes


def pair(
    scene: Scene, rng: np.random.Generator, accept: Callable[[Object, Object], bool], hidden: tuple[str, ...]
) -> tuple[int, int, str, str] | None:
    """Two objects that `accept` takes in this order, and a description of each."""
    pairs = [
        (i, j)
        for i, first in enumerate(scene.objects)
        for j, second in enumerate(scene.objects)
        if i != j and accept(first, second)
    ]
    if not pairs:
        return None
    i, j = pairs[int(rng.integers(len(pairs)))]
    first, second = describe(scene, rng, i, hidden), describe(scene, rng, j, hidden)
    return None if first is None or second is None else (i, j, first, second)


def larger(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Whether an object is larger than another."""
    wanted = int(rng.integers(2))
    drawn = pair(scene, rng, lambda a, b: a.size == wanted and b.size == 1 - wanted, ("size",))
    if drawn is None:
        return None
    i, j, first, second = drawn
    text = f"is the {first} larger than the {second}?"
    return Question(text, "yes" if wanted else "no", "comparison/larger", "yes/no", (i,), (j,))


def colour_of_larger(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The colour of the larger of two objects."""
    drawn = pair(scene, rng, lambda a, b: a.size != b.size and a.colour != b.colour, ("size", "colour"))
    if drawn is None:
        return None
    i, j, first, second = drawn
    answer = COLOURS[scene.objects[i if scene.objects[i].size else j].colour]
    text = f"what color is the larger one, the {first} or the {second}?"
    return Question(text, answer, "comparison/color of larger", "other", (i, j))


def relation(scene: Scene, rng: np.random.Generator, kind: str, forms: Sequence[str]) -> Question | None:
    """On which side of another an object is.

    Args:
        scene: it.
        rng: random numbers.
        kind: the `question_type`.
        forms: wordings, with "first" and "second" for the two objects.
    """
    wanted = SIDES[int(rng.integers(4))]
    drawn = pair(scene, rng, lambda one, other: side_of(one, other) == wanted, ())
    if drawn is None:
        return None
    i, j, first, second = drawn
    form = forms[int(rng.integers(len(forms)))] if len(forms) > 1 else forms[0]
    return Question(form.format(first=first, second=second), wanted, kind, "other", (i,), (j,))


ON_WHICH_SIDE = "on which side of the {second} is the {first}?"


TEMPLATES: tuple[tuple[int, Template], ...] = (
    (15, _ask_about_one("what color is the {}?", "attribute/color", "colour")),
    (15, _ask_about_one("what shape is the {}?", "attribute/shape", "shape")),
    (8, _ask_about_one("what texture has the {}?", "attribute/texture", "texture")),
    (14, _ask_about_one("where is the {}?", "position")),
    (14, _counting),
    (10, _existence),
    (6, larger),
    (7, colour_of_larger),
    (13, partial(relation, kind="relation", forms=(ON_WHICH_SIDE,))),
)
"""Templates of the narrow layout, and how many of 102 draws each gets."""
