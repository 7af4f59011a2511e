"""Draws questions about a scene: which templates its layout has, and the longer ones that only the wide layout has.

The wide layout asks the same in several wordings, names an object by what stands beside it, and asks about two things
at once; sentences have up to 30 words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from itertools import product

import numpy as np

from pumer.world.scenes import Object, Scene
from pumer.world.sentences import (
    COUNTED,
    ON_WHICH_SIDE,
    TEMPLATES,
    THIRDS,
    VALUES,
    Attributes,
    Question,
    Template,
    a,
    attributes_of,
    claim,
    colour_of_larger,
    describe,
    larger,
    matching,
    pair,
    phrase,
    plural,
    position,
    relation,
    side_of,
    third,
)

_TRIALS = 20
_BESIDE = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
_SIDES = (ON_WHICH_SIDE, "where is the {first}, seen from the {second}?")
_NEARER = 1.5
"""The nearest object is so many times nearer than the next, by squared distance."""
_FORMS: dict[str, Sequence[str]] = {
    "colour": (
        "what color is the {}?",
        "which color does the {} have?",
        "what is the color of the {} in this picture?",
        "can you tell me the color of the {}?",
    ),
    "shape": (
        "what shape is the {}?",
        "which shape does the {} have?",
        "what is the shape of the {} in this picture?",
    ),
    "texture": (
        "what texture has the {}?",
        "which pattern does the {} show?",
        "what kind of pattern is on the {}?",
    ),
    "position": (
        "where is the {}?",
        "in which part of the picture is the {}?",
        "where in this image can you find the {}?",
    ),
    "counting": (
        "how many {} are there?",
        "how many {} can you see?",
        "what is the number of {} in the picture?",
    ),
}


def ask(scene: Scene, rng: np.random.Generator) -> Question:
    """Draw one question about a scene; some templates seldom fit one, and are tried more than once."""
    wheel = _wheel(scene.config.wide)
    while True:
        template = wheel[int(rng.integers(len(wheel)))]
        for _ in range(_TRIALS):
            question = template(scene, rng)
            if question is not None:
                return question


@cache
def _wheel(wide: bool) -> list[Template]:
    return [template for weight, template in (_WIDE_TEMPLATES if wide else TEMPLATES) for _ in range(weight)]


def _form(name: str, rng: np.random.Generator) -> str:
    forms = _FORMS[name]
    return forms[int(rng.integers(len(forms)))]


def _about_one(name: str, question_type: str) -> Template:
    """A template that asks for an attribute of one object, or for its position."""

    def template(scene: Scene, rng: np.random.Generator) -> Question | None:
        index = int(rng.integers(len(scene.objects)))
        hidden = () if name == "position" else (name,)
        described = _beside(scene, rng, index, hidden) if rng.integers(2) else (describe(scene, rng, index, hidden), ())
        if described is None or described[0] is None:
            return None
        item = scene.objects[index]
        answer = position(scene, item) if name == "position" else VALUES[name][getattr(item, name)]
        text = _form(name, rng).format(described[0])
        return Question(text, answer, question_type, "other", (index,), described[1])

    return template


def _beside(
    scene: Scene, rng: np.random.Generator, index: int, hidden: tuple[str, ...]
) -> tuple[str, tuple[int, ...]] | None:
    """An object named by an attribute that others have as well, and by what it stands beside; and that object."""
    item, names = scene.objects[index], [name for name in VALUES if name not in hidden]
    attributes = attributes_of(item, [names[int(rng.integers(len(names)))]])
    alike = matching(scene, attributes)
    for other in rng.permutation(len(scene.objects)).tolist() if len(alike) > 1 else ():
        beside = scene.objects[other]
        side = None if other in alike else side_of(item, beside)
        if side is None or any(i != index and _towards(scene.objects[i], beside, side) for i in alike):
            continue
        anchor = describe(scene, rng, other)
        if anchor is not None:
            where = f" at the {position(scene, beside)}" if rng.integers(2) else ""
            return f"{phrase(attributes)} {_BESIDE[side]} the {anchor}{where}", (other,)
    return None


def _towards(item: Object, other: Object, side: str) -> bool:
    """Whether an object is at all on a side of another, be it obliquely: a reader might take it to be meant."""
    dx, dy = (mine - its for mine, its in zip(item.centre, other.centre, strict=True))
    return {"left": dx < 0, "right": dx > 0, "above": dy < 0, "below": dy > 0}[side]


def _counting(scene: Scene, rng: np.random.Generator) -> Question | None:
    """How many objects of a kind there are, in the image or in a row or a column of it; high numbers are rarer."""
    count, everywhere = int(rng.integers(scene.config.most + 1)), bool(rng.integers(2))
    axis, part = ("row", "column")[int(rng.integers(2))], int(rng.integers(3))
    where = "" if everywhere else f" in the {THIRDS[axis][part]} {axis}"
    for pick in rng.permutation(len(COUNTED)).tolist():
        choices: list[tuple[Attributes, tuple[int, ...]]] = []
        for values in product(*(range(scene.config.values[name]) for name in COUNTED[pick])):
            attributes = tuple(zip(COUNTED[pick], values, strict=True))
            found = matching(scene, attributes)
            if not everywhere:
                found = tuple(i for i in found if third(scene, scene.objects[i], axis) == part)
            if len(found) == count:
                choices.append((attributes, found))
        if choices:
            attributes, found = choices[int(rng.integers(len(choices)))]
            text = _form("counting", rng).format(plural(attributes) + where)
            return Question(text, str(count), "counting", "number", found)
    return None


def _existence(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Whether there is an object, or both of two, or one of them, or all of three."""
    wanted = bool(rng.integers(2))
    kind, text, objects, holds = _EXISTENCE[int(rng.integers(len(_EXISTENCE)))]
    placed = rng.integers(2, size=objects).tolist()  # chosen first: a place is no hint at the answer
    for _ in range(5 * _TRIALS):
        found, nouns = zip(*(_claimed(scene, rng, objects, bool(place)) for place in placed), strict=True)
        if holds(map(bool, found)) == wanted:
            about = tuple(dict.fromkeys(index for each in found for index in each))
            return Question(text.format(*nouns), "yes" if wanted else "no", f"existence/{kind}", "yes/no", about)
    return None


_EXISTENCE: tuple[tuple[str, str, int, Callable[[Iterable[bool]], bool]], ...] = (
    ("one", "can you see {} in this picture?", 1, all),
    ("both", "are there both {} and {} in the picture?", 2, all),
    ("either", "is there {}, or at least {}?", 2, any),
    ("three", "are these in the picture: {}, {} and {}?", 3, all),
)
"""Kind, wording, how many objects it names, and whether all of them have to be there or any."""


def _claimed(scene: Scene, rng: np.random.Generator, objects: int, placed: bool) -> tuple[tuple[int, ...], str]:
    """A noun phrase, with a place or without, and the objects that it fits; a shorter one beside two others."""
    count = 2 if objects > 2 else 2 + int(rng.integers(3))
    found, attributes = claim(scene, rng, ("colour", "shape", "texture", "size"), count)
    noun = a(phrase(attributes))
    if not placed:
        return found, noun
    chance = int(rng.integers(len(scene.objects)))
    place = position(scene, scene.objects[found[0] if found and rng.integers(2) else chance])
    there = tuple(index for index in found if position(scene, scene.objects[index]) == place)
    return there, f"{noun} at the {place}"


def _more(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Whether there are more objects of one kind than of another."""
    wanted, name = bool(rng.integers(2)), ("texture", "colour", "shape")[int(rng.integers(3))]
    one, other = rng.permutation(scene.config.values[name])[:2].tolist()
    first, second = (matching(scene, ((name, value),)) for value in (one, other))
    if len(first) == len(second) or (len(first) > len(second)) != wanted:
        return None
    text = f"are there more {plural(((name, one),))} than {plural(((name, other),))}?"
    return Question(text, "yes" if wanted else "no", "comparison/more", "yes/no", (*first, *second))


def _same(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Whether two objects have an attribute in common."""
    wanted, name = bool(rng.integers(2)), ("texture", "colour", "shape")[int(rng.integers(3))]
    drawn = pair(scene, rng, lambda one, other: (getattr(one, name) == getattr(other, name)) == wanted, (name,))
    if drawn is None:
        return None
    i, j, first, second = drawn
    text = f"do the {first} and the {second} have the same {name.replace('colour', 'color')}?"
    return Question(text, "yes" if wanted else "no", "comparison/same", "yes/no", (i, j))


def _nearest(scene: Scene, rng: np.random.Generator) -> Question | None:
    """An attribute of the object that is nearest to another."""
    name = ("colour", "shape")[int(rng.integers(2))]
    other = int(rng.integers(len(scene.objects)))
    anchor = describe(scene, rng, other)
    near = sorted((_distance(item, scene.objects[other]), i) for i, item in enumerate(scene.objects) if i != other)
    if anchor is None or near[0][0] * _NEARER > near[1][0]:
        return None
    index = near[0][1]
    text = f"what {name.replace('colour', 'color')} is the object that is nearest to the {anchor}?"
    answer = VALUES[name][getattr(scene.objects[index], name)]
    return Question(text, answer, "relation/nearest", "other", (index,), (other,))


def _distance(one: Object, other: Object) -> int:
    return sum((x - y) ** 2 for x, y in zip(one.centre, other.centre, strict=True))


_WIDE_TEMPLATES: tuple[tuple[int, Template], ...] = (
    (14, _about_one("colour", "attribute/color")),
    (14, _about_one("shape", "attribute/shape")),
    (8, _about_one("texture", "attribute/texture")),
    (12, _about_one("position", "position")),
    (14, _counting),
    (12, _existence),
    (4, larger),
    (4, colour_of_larger),
    (4, _more),
    (4, _same),
    (5, _nearest),
    (9, partial(relation, kind="relation/side", forms=_SIDES)),
)
"""Templates of the wide layout, and how many of 104 draws each gets."""
