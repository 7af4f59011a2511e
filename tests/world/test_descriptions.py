"""Captions: an independent reader finds what they say, five are about different objects, and few fit another scene."""

import re

from pumer.world import scenes
from pumer.world.descriptions import Description, ambiguous, describe_scene
from pumer.world.scenes import COLOURS, SHAPES, SIZES, TEXTURES
from pumer.world.sentences import phrase, position, side_of

SIDES = {"left of": "left", "right of": "right", "above": "above", "below": "below"}


def drawn(count: int) -> list[tuple[scenes.Scene, list[Description]]]:
    made = []
    for index in range(count):
        rng = scenes.generator(0, "val", index, "flickr30k")
        scene = scenes.make_scene(rng)
        made.append((scene, describe_scene(scene, rng)))
    return made


def fits(item: scenes.Object, words: str) -> bool:
    known = {SHAPES[item.shape], COLOURS[item.colour], SIZES[item.size], TEXTURES[item.texture], "object", "a", "an"}
    return set(words.split()) <= known


def read(scene: scenes.Scene, text: str) -> bool:
    """Whether the words are true of the scene."""
    items = scene.objects
    for part in text.rstrip(".").split(", and "):
        if match := re.fullmatch(r"(.*) is at the (.*)", part):
            told = [fits(item, match[1]) and position(scene, item) == match[2] for item in items]
        else:
            match = re.fullmatch(r"(.*?)(?: at the (.*))? is (left of|right of|above|below) (.*)", part)
            firsts = [item for item in items if fits(item, match[1])]
            seconds = [item for item in items if fits(item, match[4])]
            there = match[2] is None or any(position(scene, item) == match[2] for item in firsts)
            related = any(side_of(a, b) == SIDES[match[3]] for a in firsts for b in seconds if a is not b)
            told = [there and related]
        if not any(told):
            return False
    return True


def test_five_different_captions_are_true_and_about_different_objects() -> None:
    for scene, captions in drawn(60):
        assert len({caption.text for caption in captions}) == 5
        assert all(caption.true_of(scene) and read(scene, caption.text) for caption in captions)
        assert all(len(caption.targets) in (2, 3) for caption in captions)
        named = [index for caption in captions[:4] for index in caption.targets]  # three of twelve objects each
        assert len(set(named)) == len(named)


def test_parts_claims_and_names_of_a_caption_agree_with_its_words() -> None:
    for scene, captions in drawn(30):
        for caption in captions:
            for part, claim in zip(caption.parts, caption.claims, strict=True):
                if " is at the " in part:
                    assert read(scene, part.removeprefix(", and ")) == claim.true_of(scene)
            assert caption.true_of(scene) == read(scene, caption.text)
            for attributes in caption.named:
                assert phrase(attributes) in caption.text


def test_every_object_of_a_caption_has_three_attributes() -> None:
    words = {*SHAPES, *COLOURS, *SIZES, *TEXTURES}
    for _, captions in drawn(60):
        for caption in captions:
            phrases = re.split(r", and | is (?:at the|left of|right of|above|below) ", caption.text.rstrip("."))
            told = [len(words.intersection(part.split())) for part in phrases if part.startswith(("a ", "an "))]
            assert told == [3] * len(caption.targets), caption.text


def test_truth_of_other_scenes_is_what_the_words_say() -> None:
    made = drawn(40)
    for _, captions in made[:10]:
        for caption in captions:
            assert [caption.true_of(scene) for scene, _ in made] == [read(scene, caption.text) for scene, _ in made]


def test_few_captions_and_no_set_of_five_fit_another_of_twenty_scenes() -> None:
    count = 200
    made = drawn(count)
    wrong = [ambiguous(made[first : first + 20]) for first in range(0, count, 20)]
    assert sum(captions for captions, _ in wrong) < 0.02 * 5 * count
    assert sum(sets for _, sets in wrong) == 0


def test_ambiguous_captions_are_counted() -> None:
    (scene, captions), other = drawn(2)
    assert ambiguous([(scene, captions), (scene, captions)]) == (10, 2)
    assert ambiguous([(scene, captions), other]) == (0, 0)
