"""The official normalisation and accuracy against a plain implementation of the published description."""

import re
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pumer.tasks.vqa_accuracy import accuracy, normalise, soft_score

WORDS = ["a", "an", "the", "dont", "don't", "cant", "two", "ten", "none", "yes", "no", "red", "1,000", "3.5", ".5"]
WORDS += ["a.m.", "10:30", "t-shirt", "on/off", "dog's"]


def plain_normalise(answer):
    """Word for word along the description, for single words without a second rule in play."""
    words_to_ten = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    numbers = {word: value for value, word in enumerate(words_to_ten)} | {"none": 0}
    words = []
    for word in answer.lower().split():
        word = re.sub(r"\.(?!\d)", "", word)
        word = str(numbers.get(word, word))
        if word not in ("a", "an", "the"):
            words.append({"dont": "don't", "cant": "can't"}.get(word, word))
    return " ".join(words)


def plain_accuracy(answer, annotators):
    """Mean over all subsets of nine annotators of min(1, matches / 3)."""
    subsets = combinations(range(len(annotators)), len(annotators) - 1)
    parts = [min(1.0, sum(annotators[i] == answer for i in subset) / 3) for subset in subsets]
    return sum(parts) / len(parts)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        ("  two\tdogs\n", "2 dogs"),
        ("None", "0"),
        ("ten", "10"),
        ("A man on the beach", "man on beach"),
        ("an", ""),
        ("dont know", "don't know"),
        ("couldntve", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("ITS", "its"),
        ("dog's", "dog's"),
        ("10:30", "10:30"),
        ("10:30 a.m.", "10:30 am"),
        ("3.5", "3.5"),
        ("3.", "3"),
        (".5", ".5"),
        ("1,000", "1000"),
        ("100,978 people", "100978 people"),
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("on/off", "on off"),
        ("t-shirt", "t shirt"),
        ("t-shirt - blue", "tshirt blue"),  # a mark that touches a space vanishes everywhere
        ("what?!", "what"),
        ("[brackets] {braces} (parentheses)", "brackets braces parentheses"),
        ('"quoted"', "quoted"),
        ("z;b=c+d_e<f>g@h`i\\j", "z b c d e f g h i j"),
        ("50% $5", "50% $5"),
        ("", ""),
    ],
)
def test_every_rule_of_the_normalisation(answer, expected):
    assert normalise(answer) == expected


@given(st.lists(st.sampled_from([word for word in WORDS if not re.search("[-/,]", word)]), max_size=5))
def test_words_normalise_one_by_one(words):
    assert normalise(" ".join(words)) == plain_normalise(" ".join(words))


@given(st.lists(st.sampled_from(WORDS), max_size=4))
def test_normalising_twice_changes_nothing(words):
    once = normalise(" ".join(words))
    assert normalise(once) == once


@given(st.lists(st.sampled_from(["red", "blue", "2", "don't"]), min_size=10, max_size=10))
def test_accuracy_is_the_mean_over_the_subsets_of_nine(annotators):
    for answer, normal in (("red", "red"), ("Two", "2"), ("dont", "don't"), ("The blue", "blue"), ("cat", "cat")):
        assert accuracy(answer, annotators) == pytest.approx(plain_accuracy(normal, annotators), abs=1e-12)


def test_accuracy_takes_the_known_values():
    values = [accuracy("yes", ("yes",) * matches + ("no",) * (10 - matches)) for matches in range(11)]
    assert values == pytest.approx([0, 0.3, 0.6, 0.9] + [1] * 7)


def test_soft_scores():
    assert [soft_score(matches) for matches in range(6)] == [0, 0.3, 0.6, 0.9, 1, 1]
