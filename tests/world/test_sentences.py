"""Questions: an independent reader answers them from the words alone; balance; what they mention."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from pumer.world import scenes, sentences
from pumer.world.questions import ask
from pumer.world.scenes import COLOURS, SHAPES, SIZES, TEXTURES


def drawn(count: int, split: str = "train") -> list[tuple[scenes.Scene, sentences.Question]]:
    result = []
    for index in range(count):
        rng = scenes.generator(0, split, index)
        scene = scenes.make_scene(rng, held_out=split == "heldout")
        result.append((scene, ask(scene, rng)))
    return result


def fits(item: scenes.Object, words: str) -> bool:
    for word in words.replace("objects", "object").split():
        singular = word if word in SHAPES else word.removesuffix("es") if word == "crosses" else word.removesuffix("s")
        known = {SHAPES[item.shape], COLOURS[item.colour], SIZES[item.size], TEXTURES[item.texture], "object"}
        if word not in known and singular not in known:
            return False
    return True


def read(scene: scenes.Scene, text: str) -> tuple[str, set[int], set[int]]:
    """The answer to a question, its targets and its anchors, read from its words."""

    def find(words: str) -> int:
        (found,) = [i for i, item in enumerate(scene.objects) if fits(item, words)]
        return found

    items = scene.objects
    if match := re.fullmatch(r"what (color|shape) is the (.*)\?", text):
        if "larger one" not in text:
            index = find(match[2])
            item = items[index]
            return COLOURS[item.colour] if match[1] == "color" else SHAPES[item.shape], {index}, set()
        first, second = (find(words) for words in re.search(r"one, the (.*) or the (.*)\?", text).groups())
        larger = max(first, second, key=lambda i: items[i].side)
        assert items[first].size != items[second].size
        return COLOURS[items[larger].colour], {first, second}, set()
    if match := re.fullmatch(r"what texture has the (.*)\?", text):
        return TEXTURES[items[find(match[1])].texture], {find(match[1])}, set()
    if match := re.fullmatch(r"where is the (.*)\?", text):
        index = find(match[1])
        row, column = divmod(items[index].part, 3)
        words = f"{('top', '', 'bottom')[row]} {('left', '', 'right')[column]}".strip()
        return words or "center", {index}, set()
    if match := re.fullmatch(r"how many (.*) are there\?", text):
        found = {i for i, item in enumerate(items) if fits(item, match[1])}
        return str(len(found)), found, set()
    if match := re.fullmatch(r"is there an? (.*)\?", text):
        found = {i for i, item in enumerate(items) if fits(item, match[1])}
        return "yes" if found else "no", found, set()
    if match := re.fullmatch(r"is the (.*) larger than the (.*)\?", text):
        first, second = find(match[1]), find(match[2])
        return "yes" if items[first].side > items[second].side else "no", {first}, {second}
    match = re.fullmatch(r"on which side of the (.*) is the (.*)\?", text)
    anchor, target = find(match[1]), find(match[2])
    dx, dy = np.subtract(items[target].centre, items[anchor].centre)
    sides = ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("above" if dy < 0 else "below")
    return sides, {target}, {anchor}


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_answers_and_mentions_are_what_the_words_say(split: str) -> None:
    for scene, question in drawn(400, split):
        answer, targets, anchors = read(scene, question.text)
        assert (question.answer, set(question.targets), set(question.anchors)) == (answer, targets, anchors), question


def test_all_six_kinds_are_asked_and_little_can_be_guessed_from_the_template() -> None:
    answers = defaultdict(Counter)
    for _, question in drawn(2000):
        answers[question.question_type][question.answer] += 1
        assert question.answer in sentences.answers()
    assert {name.partition("/")[0] for name in answers} == set(sentences.KINDS)
    best = sum(counter.most_common(1)[0][1] for counter in answers.values()) / 2000
    assert best < 0.32
    for name, counter in answers.items():
        known = LARGEST_SHARES[name]
        assert counter.most_common(1)[0][1] < (known + 0.1) * counter.total(), name


LARGEST_SHARES = {
    "attribute/color": 1 / 8,
    "attribute/shape": 1 / 6,
    "attribute/texture": 1 / 3,
    "position": 1 / 9,
    "counting": 1 / 5,
    "existence": 1 / 2,
    "comparison/larger": 0.58,  # large objects are fewer, and so more often told apart by few words
    "comparison/color of larger": 1 / 8,
    "relation": 1 / 4,
}
"""Of the most frequent answer of a template, if all are drawn equally often."""


def test_answer_types_are_those_of_vqav2() -> None:
    for _, question in drawn(400):
        kind = "yes/no" if question.answer in ("yes", "no") else "number" if question.answer.isdigit() else "other"
        assert question.answer_type == kind


def test_positions_and_sides() -> None:
    config = scenes.SceneConfig()
    middle = scenes.Object(0, 0, 1, 0, 4, 34, 34, 28)
    right = scenes.Object(0, 0, 1, 0, 5, 66, 36, 28)
    corner = scenes.Object(0, 0, 1, 0, 8, 66, 66, 28)
    scene = scenes.Scene(config, (middle, right, corner), (), (0, 0, 0), (0, 0), bytes(144))
    assert [sentences.position(scene, item) for item in scene.objects] == ["center", "right", "bottom right"]
    assert sentences.side_of(right, middle) == "right"
    assert sentences.side_of(middle, right) == "left"
    assert sentences.side_of(middle, corner) is None
