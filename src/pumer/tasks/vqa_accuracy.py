"""The VQA challenge's answer normalisation and accuracy, from visualqa.org/evaluation and as its script has them."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

from pumer.settings.common import Rule

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS = 32  # the official script removes no more: it gives `re.UNICODE` where `re.sub` expects a count
_ARTICLES = {"a", "an", "the"}
_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""


def _lacking_one_apostrophe(word: str) -> Iterator[str]:
    """The spellings of a contraction with one of its apostrophes left out."""
    for place, character in enumerate(word):
        if character == "'":
            yield word[:place] + word[place + 1 :]


_APOSTROPHES = {spelling: word for word in _CONTRACTIONS.split() for spelling in _lacking_one_apostrophe(word)}
_APOSTROPHES["somebody'd"] = "somebodyd"  # as the official script has it


@lru_cache(maxsize=2**18)
def stripped(answer: str) -> str:
    """An answer as written, on one line and without space around it; the same object for the same answer."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=2**18)
def normalise(answer: str) -> str:
    """An answer in the form in which the VQA challenge compares answers.

    Lower case, number words as digits, no articles, full stops only before a digit (or after 32 others). A
    contraction that lacks one of its apostrophes gets it, as far as the official script does it: that leaves "im",
    "ive", "lets" and "shes" as they are, and spellings that lack two ("couldntve"), and turns "somebody'd" into
    "somebodyd". Other punctuation (not apostrophes and colons) goes: without a trace when it touches a space or the
    text holds a number like 1,000; as a space otherwise.

    Example:
        >>> normalise("The T-shirt, dont you see?")
        "t shirt don't you see"
        >>> normalise("Two of 1,000 a.m.")
        '2 of 1000 am'
    """
    text = stripped(answer)
    thousands = _THOUSANDS.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if thousands or beside_space else " ")
    words = (_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", cleaned, count=_FULL_STOPS).lower().split())
    return " ".join(_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)


def soft_score(matches: int) -> float:
    """Training target of an answer that `matches` of the ten annotators gave: 0, 0.3, 0.6, 0.9 or 1."""
    return min(1.0, round(0.3 * matches, 1))


def accuracy(answer: str, annotators: Sequence[str], rule: Rule = "official") -> float:
    """Accuracy of one answer, in [0, 1].

    An answer counts min(1, matches / 3) against every subset that leaves one annotator out; the mean over
    these subsets is the accuracy.

    Args:
        answer: the predicted answer, as the model gives it.
        annotators: the annotators' answers as written (ten in the official files).
        rule: when answers are normalised before they are compared. "official": as the script of the challenge
            (VQA's `vqaEval.py`) does it, only if the annotators differ; where all of them wrote the same, that very
            text must be given, for it may be a text in the image. "published": always, as visualqa.org/evaluation
            describes it.
    """
    form, given = _given(tuple(annotators), rule)
    count, matches = len(annotators), given[form(answer)]
    left_out_matches, left_out_differs = min(1.0, (matches - 1) / 3), min(1.0, matches / 3)
    return (matches * left_out_matches + (count - matches) * left_out_differs) / count


@lru_cache(maxsize=2**10)  # many answers are scored against the same annotators
def _given(annotators: tuple[str, ...], rule: Rule) -> tuple[Callable[[str], str], Counter[str]]:
    """The form in which answers are compared with these annotators', and how often each was given."""
    written = Counter(map(stripped, annotators))
    if rule == "official" and len(written) <= 1:
        return stripped, written
    return normalise, Counter(map(normalise, annotators))
