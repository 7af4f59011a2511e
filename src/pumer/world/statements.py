"""Statements about two images, true or false, that neither image decides alone.

They come in sets of four pairs, as in NLVR2, made of four images: a statement is true of two pairs and false of two,
and every pair has as many true statements as false ones. Most sets cross two left images with two right ones, so that
every image is part of a true and of a false pair of each statement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np

from pumer.world.scenes import Scene, SceneConfig
from pumer.world.sentences import POSITIONS, VALUES, Attributes, a, matching, phrase, plural, position

BLOCK = 40
"""Images from which sets of pairs choose theirs."""
PAIRS = 4
STATEMENTS_PER_SET = 4


@dataclass(frozen=True)
class Feature:
    """A number that every image has: how many objects, whether there is one at a place, what the one there is like.

    Args:
        kind: "count", "place" or "look".
        attributes: of the objects meant; () for any.
        place: where, one of POSITIONS; None for anywhere.
        name: for "look", the attribute whose value is the number.
    """

    kind: str
    attributes: Attributes = ()
    place: str | None = None
    name: str | None = None

    def of(self, scene: Scene) -> int:
        """The number of a scene; -1 for the look of no or several objects, and for more objects than are counted."""
        found = self.objects(scene)
        if self.kind == "look":
            return int(getattr(scene.objects[found[0]], str(self.name))) if len(found) == 1 else -1
        if self.kind == "count":
            return len(found) if len(found) <= scene.config.most else -1
        return bool(found)

    def objects(self, scene: Scene) -> tuple[int, ...]:
        """Indices of the objects that the feature is about."""
        found = matching(scene, self.attributes)
        if self.place is None:
            return found
        return tuple(index for index in found if position(scene, scene.objects[index]) == self.place)


FEATURE_KINDS = ("count", "place", "look")


@cache
def features(layout: SceneConfig) -> tuple[Feature, ...]:
    """All that statements about scenes of a layout may compare."""
    single = [((name, value),) for name in VALUES for value in range(layout.values[name])]
    double = [x + y for x, y in combinations(single, 2) if x[0][0] != y[0][0]]
    counted = (Feature("count", attributes) for attributes in (*single, *double))
    placed = (Feature("place", attributes, place) for place in POSITIONS for attributes in single)
    looks = (Feature("look", (), place, name) for place in POSITIONS for name in VALUES)
    return (*counted, *placed, *looks)


@cache
def features_of(kind: str, layout: SceneConfig) -> list[int]:
    """Indices of the features of one of FEATURE_KINDS."""
    return [index for index, feature in enumerate(features(layout)) if feature.kind == kind]


@dataclass(frozen=True)
class Statement:
    """A claim about a left and a right image.

    Args:
        text: the sentence, lower case.
        template: its form.
        feature: what it compares.
        numbers: those it names: of one image and of the other.
    """

    text: str
    template: str
    feature: Feature
    numbers: tuple[int, int] = (0, 0)

    def true_of(self, left: Scene, right: Scene) -> bool:
        """Whether the statement holds of two scenes."""
        one, other = self.feature.of(left), self.feature.of(right)
        return {
            "same": one == other,
            "differ": one != other,
            "one and other": sorted((one, other)) == sorted(self.numbers),
            "sum": one + other == sum(self.numbers),
            "more": one > other,
            "fewer": one < other,
            "both": one > 0 and other > 0,
            "not both": one == 0 or other == 0,
            "any": one > 0 or other > 0,
            "none": one == 0 and other == 0,
        }[self.template.rpartition("/")[2]]


@dataclass(frozen=True)
class PairSet:
    """Four pairs and the statements about them; scenes by index.

    Args:
        pairs: left and right scene of each pair.
        statements: each true of two pairs.
    """

    pairs: tuple[tuple[int, int], ...]
    statements: tuple[Statement, ...]


def pair_sets(scenes: Sequence[Scene], rng: np.random.Generator) -> list[PairSet]:
    """Sets of pairs with their statements; no scene is in two sets.

    Args:
        scenes: to choose from, about BLOCK, all of one layout.
        rng: random numbers.
    """
    layout = scenes[0].config
    numbers = np.array([[feature.of(scene) for feature in features(layout)] for scene in scenes])
    free = np.ones(len(scenes), bool)
    sets: list[PairSet] = []
    failures = 0
    while failures < 30 and free.sum() >= PAIRS:
        order = rng.permutation(np.flatnonzero(free))
        made = _MAKERS[int(rng.integers(len(_MAKERS)))](numbers, order, rng, layout)
        failures = failures + 1 if made is None else 0
        if made is not None:
            sets.append(made)
            free[list({index for pair in made.pairs for index in pair})] = False
    return sets


def _crossed(numbers: np.ndarray, order: np.ndarray, rng: np.random.Generator, layout: SceneConfig) -> PairSet | None:
    """Two left images times two right ones, which differ in the same way."""
    able = features_of(FEATURE_KINDS[int(rng.integers(len(FEATURE_KINDS)))], layout)
    feature = able[int(rng.integers(len(able)))]
    values, counts = np.unique(numbers[order, feature], return_counts=True)
    usable = rng.permutation(values[(counts >= 2) & (values >= 0)])
    if len(usable) < 2:
        return None
    left, right = zip(*(order[numbers[order, feature] == value][:2] for value in usable[:2]), strict=True)
    pairs = tuple((int(one), int(other)) for one in left for other in right)
    pairs = tuple(pairs[place] for place in rng.permutation(PAIRS))
    first, second = numbers[list(left)], numbers[list(right)]
    straight, turned = (first == second).all(0), (first == second[::-1]).all(0)
    apart = (first[0] != first[1]) & (numbers[[*left, *right]] >= 0).all(0)
    statements = _choose(first, straight & apart, turned & apart, feature, rng, layout)
    return PairSet(pairs, statements)


def _choose(
    numbers: np.ndarray,
    straight: np.ndarray,
    turned: np.ndarray,
    feature: int,
    rng: np.random.Generator,
    layout: SceneConfig,
) -> tuple[Statement, ...]:
    """Two or four statements, half of them true of any pair."""
    chosen = [feature]
    for kind in rng.permutation(len(FEATURE_KINDS)).tolist():
        found = [i for i in features_of(FEATURE_KINDS[kind], layout) if (straight | turned)[i] and i not in chosen]
        chosen.extend(rng.permutation(found)[:2].tolist())
    start = int(rng.integers(2))
    chosen = chosen[:STATEMENTS_PER_SET] if len(chosen) >= STATEMENTS_PER_SET else [feature, chosen[-1]]
    return tuple(
        claim_equality(features(layout)[index], numbers[:, index], bool(straight[index]) == (rank % 2 == start), rng)
        for rank, index in enumerate(chosen)
    )


def claim_equality(feature: Feature, values: np.ndarray, same: bool, rng: np.random.Generator) -> Statement:
    """A statement that the images are the same or that they differ; `values` are the two numbers that they have."""
    high, low = int(max(values)), int(min(values))
    if feature.kind == "look":
        word = str(feature.name).replace("colour", "color")
        text = f"the object at the {feature.place} has {'the same' if same else 'another'} {word} in the "
        text += "2 images." if same else "other image."
        return Statement(text, f"look/{'same' if same else 'differ'}", feature)
    if feature.kind == "place":
        noun = f"{a(phrase(feature.attributes))} at the {feature.place}"
        text = f"{'both images or none' if same else 'only one image'} shows {noun}."
        return Statement(text.replace("none shows", "none show"), f"place/{'same' if same else 'differ'}", feature)
    nouns = plural(feature.attributes)
    if same:
        return Statement(f"both images have the same number of {nouns}.", "count/same", feature)
    many = nouns if high > 1 else phrase(feature.attributes)
    form = int(rng.integers(4))
    if form == 0:
        return Statement(f"the images have different numbers of {nouns}.", "count/differ", feature)
    if form == 1:
        text = f"there are exactly {high + low} {nouns if high + low > 1 else many} in the 2 images."
        return Statement(text.replace("are exactly 1 ", "is exactly 1 "), "count/sum", feature, (high, low))
    text = f"one image has exactly {high} {many} and the other has {low or 'none'}."
    return Statement(text, "count/one and other", feature, (high, low))


def _ordered(numbers: np.ndarray, order: np.ndarray, rng: np.random.Generator, layout: SceneConfig) -> PairSet | None:
    """One image of few, two of some, one of many: more on the left in two pairs, on the right in two."""
    able = features_of("count", layout)
    feature = able[int(rng.integers(len(able)))]
    values, counts = np.unique(numbers[order, feature], return_counts=True)
    values, counts = values[values >= 0], counts[values >= 0]
    middles = [place for place in range(1, len(values) - 1) if counts[place] >= 2]
    if not middles:
        return None
    place = middles[int(rng.integers(len(middles)))]
    low, some, high = (order[numbers[order, feature] == value].tolist() for value in values[place - 1 : place + 2])
    pairs = ((some[0], low[0]), (high[0], some[1]), (low[0], some[1]), (some[0], high[0]))
    return PairSet(pairs, tuple(claim_order(features(layout)[feature], name, rng) for name in ("more", "fewer")))


def claim_order(feature: Feature, name: str, rng: np.random.Generator) -> Statement:
    """A statement that the left image has "more" or "fewer"."""
    words = {
        "more": ("left image has more {} than the right", "right image has fewer {} than the left"),
        "fewer": ("right image has more {} than the left", "left image has fewer {} than the right"),
    }[name][int(rng.integers(2))]
    return Statement(f"the {words.format(plural(feature.attributes))} image.", f"count/{name}", feature)


def _joined(numbers: np.ndarray, order: np.ndarray, rng: np.random.Generator, layout: SceneConfig) -> PairSet | None:
    """Both images show something in two pairs and one of them in two; or one does in two and none in two."""
    able = features_of("place", layout)
    feature = able[int(rng.integers(len(able)))]
    without, shown = (order[numbers[order, feature] == value][:2].tolist() for value in (0, 1))
    if len(without) < 2 or len(shown) < 2:
        return None
    many, few = (shown, without) if rng.integers(2) else (without, shown)
    names = ("both", "not both") if many is shown else ("any", "none")
    pairs = ((many[0], many[1]), (many[1], many[0]), (many[0], few[0]), (few[1], many[1]))
    return PairSet(pairs, tuple(claim_presence(features(layout)[feature], name) for name in names))


def claim_presence(feature: Feature, name: str) -> Statement:
    """A statement about how many of the two images show something at a place."""
    noun = phrase(feature.attributes)
    text = {
        "both": f"both images show {a(noun)}",
        "not both": f"at least one image shows no {noun}",
        "any": f"at least one image shows {a(noun)}",
        "none": f"no image shows {a(noun)}",
    }[name]
    return Statement(f"{text} at the {feature.place}.", f"place/{name}", feature)


_MAKERS = (_crossed, _crossed, _crossed, _ordered, _joined)
