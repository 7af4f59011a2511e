"""Questions and captions about a scene, with the objects they mention.

A question's `question_type` is its template, its part before "/" the kind: attribute, position, counting, existence,
comparison or relation. Answers are drawn so that they are balanced within a template, and most are open-ended:
without the picture, or without the question, little can be guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

import numpy as np

from pumer.world.scenes import COLOURS, SHAPES, SIZES, TEXTURES, Object, Scene

KINDS = ("attribute", "position", "counting", "existence", "comparison", "relation")
POSITIONS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
SIDES = ("left", "right", "above", "below")
MAX_COUNT = 4
ANSWERS = tuple(
    sorted({*COLOURS, *SHAPES, *TEXTURES, *POSITIONS, *SIDES, "yes", "no", *map(str, range(MAX_COUNT + 1))})
)
"""Every answer of the world, sorted as an answer vocabulary is."""

Attributes = tuple[tuple[str, int], ...]
"""Some attributes of an object, in the order in which they are said: ((name, index of its value), ...)."""

VALUES = {"size": SIZES, "texture": TEXTURES, "colour": COLOURS, "shape": SHAPES}
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
NOUNS = (*PLURALS, *PLURALS.values(), "object", "objects", "one")
"""What a phrase that names objects ends with."""
OPENERS = "a an the another is are was at in of than or and , above below has have shows show sees"
"""Words, one of which the next part of a sentence starts with."""
_SHORT = (
    ("shape",),
    ("colour",),
    ("colour", "shape"),
    ("colour", "shape"),
    ("size", "shape"),
    ("texture", "shape"),
    ("size", "colour"),
    ("texture", "colour"),
)
_COUNTED = (("size",), ("texture",), ("colour",), ("shape",), *combinations(("size", "texture", "colour", "shape"), 2))
_LONG = (
    ("size", "colour", "shape"),
    ("texture", "colour", "shape"),
    ("size", "texture", "shape"),
    ("size", "texture", "colour"),
    ("size", "texture", "colour", "shape"),
)


@dataclass(frozen=True)
class Question:
    """A question, its answer, and the indices of the objects it is about.

    Args:
        text: the question, lower case.
        answer: the one right answer.
        question_type: the template's name.
        answer_type: "yes/no", "number" or "other", as in VQAv2.
        targets: objects the question asks about (all that are counted; none if there is none).
        anchors: objects it only refers to.
    """

    text: str
    answer: str
    question_type: str
    answer_type: str
    targets: tuple[int, ...]
    anchors: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return self.question_type.partition("/")[0]


@dataclass(frozen=True)
class Caption:
    """A sentence, whether the scene agrees with it, and the objects it mentions."""

    text: str
    true: bool
    targets: tuple[int, ...]
    anchors: tuple[int, ...] = ()


def phrase(attributes: Mapping[str, int]) -> str:
    """A noun phrase such as "small red circle"; without a shape the noun is "object"."""
    words = [VALUES[name][attributes[name]] for name in ("size", "texture", "colour") if name in attributes]
    words.append(SHAPES[attributes["shape"]] if "shape" in attributes else "object")
    return " ".join(words)


def plural(attributes: Mapping[str, int]) -> str:
    """The plural of `phrase`, such as "small red circles"."""
    shape, rest = attributes.get("shape"), {name: value for name, value in attributes.items() if name != "shape"}
    noun = "objects" if shape is None else PLURALS[SHAPES[shape]]
    return phrase(rest).removesuffix("object") + noun


def a(noun: str) -> str:
    """The noun with its article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def attributes_of(item: Object, names: Sequence[str]) -> Attributes:
    """These attributes of an object."""
    return tuple((name, getattr(item, name)) for name in names)


def matching(scene: Scene, attributes: Mapping[str, int] | Attributes) -> tuple[int, ...]:
    """Indices of the objects that have all of `attributes`."""
    items = attributes.items() if isinstance(attributes, Mapping) else attributes
    return tuple(i for i, o in enumerate(scene.objects) if all(getattr(o, name) == value for name, value in items))


def position(scene: Scene, item: Object) -> str:
    """The ninth of the picture that holds the object's centre, in words."""
    side, (x, y) = 2 * scene.config.image_size, item.centre
    return POSITIONS[3 * (3 * y // side) + 3 * x // side]


def side_of(item: Object, other: Object) -> str | None:
    """On which side of `other` the object is, or None where two answers could be defended."""
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


def _attribute(name: str, word: str, text: str) -> Callable[[Scene, np.random.Generator], Question | None]:
    def ask(scene: Scene, rng: np.random.Generator) -> Question | None:
        index = int(rng.integers(len(scene.objects)))
        described = describe(scene, rng, index, (name,))
        if described is None:
            return None
        answer = VALUES[name][getattr(scene.objects[index], name)]
        return Question(text.format(described), answer, f"attribute/{word}", "other", (index,))

    return ask


def _position(scene: Scene, rng: np.random.Generator) -> Question | None:
    index = int(rng.integers(len(scene.objects)))
    described = describe(scene, rng, index)
    if described is None:
        return None
    answer = position(scene, scene.objects[index])
    return Question(f"where is the {described}?", answer, "position", "other", (index,))


def _counting(scene: Scene, rng: np.random.Generator) -> Question | None:
    choices: list[list[tuple[Attributes, tuple[int, ...]]]] = [[] for _ in range(MAX_COUNT + 1)]
    names = _COUNTED[int(rng.integers(len(_COUNTED)))]
    for values in product(*(range(len(VALUES[name])) for name in names)):
        attributes = tuple(zip(names, values, strict=True))
        found = matching(scene, attributes)
        if len(found) <= MAX_COUNT:
            choices[len(found)].append((attributes, found))
    count = int(rng.integers(MAX_COUNT + 1))
    if not choices[count]:
        return None
    attributes, found = choices[count][int(rng.integers(len(choices[count])))]
    return Question(f"how many {plural(dict(attributes))} are there?", str(count), "counting", "number", found)


def _existence(scene: Scene, rng: np.random.Generator) -> Question | None:
    wanted = bool(rng.integers(2))
    found, attributes = _claim(scene, rng, ("colour", "shape", "texture", "size"), 2 + int(rng.integers(2)))
    if bool(found) != wanted:
        return None
    noun = phrase(attributes)
    return Question(f"is there {a(noun)}?", "yes" if found else "no", "existence", "yes/no", found)


def _claim(
    scene: Scene, rng: np.random.Generator, names: tuple[str, ...], count: int
) -> tuple[tuple[int, ...], dict[str, int]]:
    """Some attributes of an object or, half of the time, a mixture that none has though others have its parts."""
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
        mixed = attributes | {name: int(rng.integers(len(VALUES[name])))}
        if not matching(scene, mixed):
            return (), mixed
    return matching(scene, attributes), attributes


def _pair(
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


def _larger(scene: Scene, rng: np.random.Generator) -> Question | None:
    wanted = int(rng.integers(2))
    pair = _pair(scene, rng, lambda a, b: a.size == wanted and b.size == 1 - wanted, ("size",))
    if pair is None:
        return None
    i, j, first, second = pair
    text = f"is the {first} larger than the {second}?"
    return Question(text, "yes" if wanted else "no", "comparison/larger", "yes/no", (i,), (j,))


def _colour_of_larger(scene: Scene, rng: np.random.Generator) -> Question | None:
    pair = _pair(scene, rng, lambda a, b: a.size != b.size and a.colour != b.colour, ("size", "colour"))
    if pair is None:
        return None
    i, j, first, second = pair
    answer = COLOURS[scene.objects[i if scene.objects[i].size else j].colour]
    text = f"what color is the larger one, the {first} or the {second}?"
    return Question(text, answer, "comparison/color of larger", "other", (i, j))


def _relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    wanted = SIDES[int(rng.integers(4))]
    pair = _pair(scene, rng, lambda a, b: side_of(a, b) == wanted, ())
    if pair is None:
        return None
    i, j, first, second = pair
    text = f"on which side of the {second} is the {first}?"
    return Question(text, wanted, "relation", "other", (i,), (j,))


_TEMPLATES: tuple[tuple[int, Callable[[Scene, np.random.Generator], Question | None]], ...] = (
    (15, _attribute("colour", "color", "what color is the {}?")),
    (15, _attribute("shape", "shape", "what shape is the {}?")),
    (8, _attribute("texture", "texture", "what texture has the {}?")),
    (14, _position),
    (14, _counting),
    (10, _existence),
    (6, _larger),
    (7, _colour_of_larger),
    (13, _relation),
)
_TRIALS = 20
_WHEEL = [ask for weight, ask in _TEMPLATES for _ in range(weight)]


def ask(scene: Scene, rng: np.random.Generator) -> Question:
    """Draw one question about a scene; some templates seldom fit one, and are tried more than once."""
    while True:
        template = _WHEEL[int(rng.integers(len(_WHEEL)))]
        for _ in range(_TRIALS):
            question = template(scene, rng)
            if question is not None:
                return question


def caption(scene: Scene, rng: np.random.Generator) -> Caption:
    """Draw a caption, true of the scene half of the time."""
    if rng.integers(3) == 0:
        pair = _pair(scene, rng, lambda a, b: side_of(a, b) is not None, ())
        if pair is not None:
            i, j, first, second = pair
            side = side_of(scene.objects[i], scene.objects[j])
            told = side if rng.integers(2) else SIDES[int(rng.integers(4))]
            where = f"{told} of" if told in ("left", "right") else told
            return Caption(f"the {first} is {where} the {second}.", told == side, (i,), (j,))
    found, attributes = _claim(scene, rng, ("colour", "shape", "texture", "size"), 2 + int(rng.integers(3)))
    if len(found) != 1:
        return Caption(f"there is a {phrase(attributes)}.", bool(found), found)
    place = position(scene, scene.objects[found[0]])
    told = place if rng.integers(3) else POSITIONS[int(rng.integers(9))]
    return Caption(f"there is a {phrase(attributes)} at the {told}.", told == place, found)
