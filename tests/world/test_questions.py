"""The wide layout's questions: an independent reader answers them from the words alone; balance; length."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from pumer.world import scenes, sentences
from pumer.world.questions import ask
from pumer.world.scenes import COLOURS, SHAPES, SIZES, TEXTURES, WIDE

_WORDS = {"color": "colour", "shape": "shape", "pattern": "texture", "texture": "texture"}
_PLACE = r"top left|top right|top|bottom left|bottom right|bottom|left|right|center"
_BESIDE = {"to the left of": "left", "to the right of": "right", "above": "above", "below": "below"}


def drawn(count: int) -> list[tuple[scenes.Scene, sentences.Question]]:
    result = []
    for index in range(count):
        rng = scenes.generator(0, "train", index)
        scene = scenes.make_scene(rng, WIDE)
        result.append((scene, ask(scene, rng)))
    return result


def value(item: scenes.Object, name: str) -> str:
    names = {"size": SIZES, "texture": TEXTURES, "colour": COLOURS, "shape": SHAPES}
    return names[name][getattr(item, name)]


class Reader:
    """Answers a question about a scene from its words; `about` collects the objects it names."""

    def __init__(self, scene: scenes.Scene) -> None:
        self.items = scene.objects
        self.side = scene.config.image_size
        self.about: set[int] = set()

    def place(self, item: scenes.Object) -> str:
        row, column = self.third(item, 1), self.third(item, 0)
        return f"{('top', '', 'bottom')[row]} {('left', '', 'right')[column]}".strip() or "center"

    def third(self, item: scenes.Object, axis: int) -> int:
        return 3 * item.centre[axis] // (2 * self.side)

    def beside(self, index: int, other: int) -> str:
        dx, dy = np.subtract(self.items[index].centre, self.items[other].centre)
        if max(abs(dx), abs(dy)) < 2 * min(abs(dx), abs(dy)):
            return "neither"
        return ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("above" if dy < 0 else "below")

    def fit(self, words: str) -> set[int]:
        """The objects that a noun phrase fits, which may name a place or what stands beside."""
        if match := re.fullmatch(rf"(.*?) ({'|'.join(_BESIDE)}) the (.*)", words):
            (other,) = self.fit(match[3])
            self.about.add(other)
            return {i for i in self.fit(match[1]) if self.beside(i, other) == _BESIDE[match[2]]}
        if match := re.fullmatch(rf"(.*) at the ({_PLACE})", words):
            return {i for i in self.fit(match[1]) if self.place(self.items[i]) == match[2]}
        if match := re.fullmatch(r"(.*) in the (\w+) (row|column)", words):
            axis = ("column", "row").index(match[3])
            third = [("left", "center", "right"), ("top", "center", "bottom")][axis].index(match[2])
            return {i for i in self.fit(match[1]) if self.third(self.items[i], axis) == third}
        found = set(range(len(self.items)))
        for word in words.split():
            known = {word, word.removesuffix("s"), word.removesuffix("es")}
            found &= {
                i
                for i, item in enumerate(self.items)
                if known & {"object", *(value(item, name) for name in ("size", "texture", "colour", "shape"))}
            }
        return found

    def one(self, words: str) -> scenes.Object:
        (index,) = self.fit(words)
        self.about.add(index)
        return self.items[index]

    def some(self, words: str) -> set[int]:
        found = self.fit(re.sub(r"^an? ", "", words))
        self.about |= found
        return found

    def answer(self, text: str) -> str:
        if match := re.fullmatch(r"what (color|shape) is the object that is nearest to the (.*)\?", text):
            anchor = self.one(match[2])
            others = [i for i, item in enumerate(self.items) if item is not anchor]
            near = min(others, key=lambda i: np.hypot(*np.subtract(self.items[i].centre, anchor.centre)))
            self.about.add(near)
            return value(self.items[near], _WORDS[match[1]])
        if match := re.fullmatch(r"what color is the larger one, the (.*) or the (.*)\?", text):
            return value(max((self.one(words) for words in match.groups()), key=lambda item: item.side), "colour")
        for form in (
            r"(?:what|which) (color|shape|texture|pattern) (?:is|has|does) the (.*?)(?: have| show)?\?",
            r"what is the (color|shape) of the (.*) in this picture\?",
            r"can you tell me the (color) of the (.*)\?",
            r"what kind of (pattern) is on the (.*)\?",
        ):
            if match := re.fullmatch(form, text):
                return value(self.one(match[2]), _WORDS[match[1]])
        if match := re.fullmatch(r"where is the (.*), seen from the (.*)\?", text):
            return self.seen(match[1], match[2])
        if match := re.fullmatch(r"on which side of the (.*) is the (.*)\?", text):
            return self.seen(match[2], match[1])
        if match := re.fullmatch(r"(?:where|in which part of the picture) is the (.*)\?", text):
            return self.place(self.one(match[1]))
        if match := re.fullmatch(r"where in this image can you find the (.*)\?", text):
            return self.place(self.one(match[1]))
        for form in (
            r"how many (.*) are there\?",
            r"how many (.*) can you see\?",
            r"what is the number of (.*) in the pic.*",
        ):
            if match := re.fullmatch(form, text):
                return str(len(self.some(match[1])))
        if match := re.fullmatch(r"is the (.*) larger than the (.*)\?", text):
            return self.yes(self.one(match[1]).side > self.one(match[2]).side)
        if match := re.fullmatch(r"are there more (.*) than (.*)\?", text):
            return self.yes(len(self.some(match[1])) > len(self.some(match[2])))
        if match := re.fullmatch(r"do the (.*) and the (.*) have the same (\w+)\?", text):
            return self.yes(len({value(self.one(words), _WORDS[match[3]]) for words in match.groups()[:2]}) == 1)
        for form, holds in (
            (r"can you see (.*) in this picture\?", all),
            (r"are there both (.*) and (.*) in the picture\?", all),
            (r"is there (.*), or at least (.*)\?", any),
            (r"are these in the picture: (.*), (.*) and (.*)\?", all),
        ):
            if match := re.fullmatch(form, text):
                return self.yes(holds([bool(self.some(words)) for words in match.groups()]))
        raise AssertionError(text)

    def seen(self, first: str, second: str) -> str:
        items = [self.one(words) for words in (first, second)]
        return self.beside(*(self.items.index(item) for item in items))

    @staticmethod
    def yes(holds: bool) -> str:
        return "yes" if holds else "no"


def test_answers_and_mentions_are_what_the_words_say() -> None:
    for scene, question in drawn(1500):
        reader = Reader(scene)
        assert reader.answer(question.text) == question.answer, question
        assert reader.about == {*question.targets, *question.anchors}, question


@pytest.fixture(scope="module")
def many() -> list[sentences.Question]:
    return [question for _, question in drawn(6000)]


def test_little_can_be_guessed_from_the_template(many: list[sentences.Question]) -> None:
    answers = defaultdict(Counter)
    for question in many:
        answers[question.question_type][question.answer] += 1
        assert question.answer in sentences.answers(WIDE)
    assert {name.partition("/")[0] for name in answers} == set(sentences.KINDS)
    assert sum(counter.most_common(1)[0][1] for counter in answers.values()) / len(many) < 0.3
    for name, counter in answers.items():
        assert counter.most_common(1)[0][1] < 0.7 * counter.total(), name
    counts = answers["counting"]
    assert set(counts) == set(map(str, range(10))) and all(counts[str(n)] > 0.08 * counts.total() for n in range(5))


def test_how_many_places_a_question_names_is_no_hint_at_its_answer(many: list[sentences.Question]) -> None:
    answers = defaultdict(Counter)
    for question in many:
        if question.question_type.startswith("existence"):
            answers[question.text.count(" at the ")][question.answer] += 1
    assert set(answers) == {0, 1, 2, 3}
    for number in (0, 1, 2):
        assert 0.38 < answers[number]["yes"] / answers[number].total() < 0.62, answers


def test_what_stands_beside_another_is_one_object_for_a_reader_too() -> None:
    """Nothing else that the words fit is on that side of the other at all, obliquely or not."""
    seen = 0
    for scene, question in drawn(1500):
        if match := re.search(rf"(\w+) ({'|'.join(_BESIDE)}) the ", question.text):
            (target,), (anchor,) = question.targets, question.anchors
            axis, sign = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}[_BESIDE[match[2]]]
            reader = Reader(scene)
            words = re.search(rf"the (\w+(?: object)?) (?:{match[2]}) the ", question.text)[1]
            other = scene.objects[anchor].centre[axis]
            there = {i for i in reader.fit(words) if sign * (scene.objects[i].centre[axis] - other) > 0}
            assert there == {target}, question
            seen += 1
    assert seen > 100


def test_a_question_has_up_to_30_words(many: list[sentences.Question]) -> None:
    lengths = [len(question.text.split()) for question in many]
    assert 24 <= max(lengths) <= 30


def test_the_narrow_layout_has_its_own_questions() -> None:
    rng = np.random.default_rng(0)
    scene = scenes.make_scene(rng)
    wide = {"can", "these", "nearest", "more", "both", "seen"}
    assert not any(wide & set(ask(scene, rng).text.split()) for _ in range(300))
