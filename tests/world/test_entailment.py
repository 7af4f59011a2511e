"""Entailment sentences: the label agrees with trying every hidden choice; neither input alone decides it."""

import re
from collections import Counter, defaultdict
from itertools import combinations

import pytest

from pumer.world import scenes
from pumer.world.entailment import BLOCK, LABELS, Hypothesis, triples
from pumer.world.scenes import COLOURS, SHAPES, SIZES, TEXTURES
from pumer.world.sentences import matching, position

WORDS = {*SHAPES, *COLOURS, *SIZES, *TEXTURES}
PLACES = {"top": 0, "left": 0, "center": 1, "bottom": 2, "right": 2}


def pool(block: int) -> list[scenes.Scene]:
    first = block * BLOCK
    return [scenes.make_scene(scenes.generator(0, "val", first + i, "snli_ve")) for i in range(BLOCK)]


def fits(scene: scenes.Scene, item: scenes.Object, words: str) -> bool:
    """Whether every word that the world shows fits the object."""
    if match := re.fullmatch(r"in the (\w+) (row|column)", words):
        part = divmod(item.part, 3)
        return part[("row", "column").index(match[2])] == PLACES[match[1]]
    shown = {SHAPES[item.shape], COLOURS[item.colour], SIZES[item.size], TEXTURES[item.texture]}
    named = (word if word in WORDS else word.removesuffix("s") for word in words.replace("crosses", "cross").split())
    return {word for word in named if word in WORDS} <= shown


def read(scene: scenes.Scene, text: str) -> str | None:
    """The label, by trying every choice of the objects that the sentence may mean."""
    subject, claim = re.split(r" (?:is|are) ", text.rstrip("."), maxsplit=1)
    group = [item for item in scene.objects if fits(scene, item, subject)]
    if len(group) < 2:
        return None
    chosen = 2 if "both" in subject else 1
    holds = any if "one or both" in subject else all
    worlds = {holds(fits(scene, item, claim) for item in choice) for choice in combinations(group, chosen)}
    return {(True,): "entailment", (False,): "contradiction"}.get(tuple(worlds), "neutral")


@pytest.fixture(scope="module")
def found() -> list[tuple[list[scenes.Scene], list[tuple[Hypothesis, tuple[int, ...]]]]]:
    return [(pool(block), triples(pool(block), scenes.generator(7, "val", block))) for block in range(4)]


def test_labels_are_those_of_an_independent_reader(found) -> None:
    for shown, made in found:
        for sentence, _ in made:
            assert [sentence.label(scene) for scene in shown] == [read(scene, sentence.text) for scene in shown]


def test_what_fits_the_claim_is_part_of_the_group(found) -> None:
    for shown, made in found:
        for sentence, _ in made:
            claim = re.split(r" (?:is|are) ", sentence.text.rstrip("."), maxsplit=1)[1]
            for scene in shown:
                fitting = [i for i in matching(scene, sentence.group) if fits(scene, scene.objects[i], claim)]
                assert list(sentence.fitting(scene)) == fitting


def test_a_sentence_has_every_label_and_a_image_most(found) -> None:
    templates, about = defaultdict(Counter), []
    for shown, made in found:
        images = defaultdict(Counter)
        assert len({sentence.text for sentence, _ in made}) == len(made) > BLOCK
        for sentence, places in made:
            assert [sentence.label(shown[place]) for place in places] == list(LABELS)
            for label, place in zip(LABELS, places, strict=True):
                templates[sentence.template][label] += 1
                images[place][label] += 1
        about += images.values()
    assert {template.split("/")[0] for template in templates} == {"one", "both", "either"}
    assert all(len(set(counts.values())) == 1 for counts in templates.values())
    best = sum(max(counts.values()) for counts in about) / sum(sum(counts.values()) for counts in about)
    assert best < 0.4, "a image decides too much"


def test_rows_and_columns_are_where_positions_say() -> None:
    sentence = Hypothesis("", "one", (("size", 0),), "row", 0)
    for scene in pool(9):
        small = [item for item in scene.objects if item.size == 0]
        tops = ["top" in position(scene, item) for item in small]
        expected = "entailment" if all(tops) else "neutral" if any(tops) else "contradiction"
        assert sentence.label(scene) == (expected if len(small) > 1 else None)
