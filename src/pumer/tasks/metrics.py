"""The tasks' metrics: VQA accuracy, as the challenge's script computes it, and what recall@k looks at."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from pumer.settings.common import Rule

CUTOFFS = (1, 5, 10)
"""A query is answered at k if one of its true candidates is among the k best."""

_BLOCK = 1024
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS = 32  # the official script removes no more: it gives `re.UNICODE` where `re.sub` expects a count
_ARTICLES = {"a", "an", "the"}
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_DIGITS)}
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
_APOSTROPHES = (
    {  # a contraction with one of its apostrophes left out
        word[:place] + word[place + 1 :]: word
        for word in _CONTRACTIONS.split()
        for place, character in enumerate(word)
        if character == "'"
    }
    | {"somebody'd": "somebodyd"}
)  # as the official script has it


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
    "somebodyd". Other punctuation (not apostrophes and colons) is removed where it touches a space or the text holds
    a number like 1,000, and becomes a space otherwise.

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


def vqa_accuracy(answer: str, annotators: Sequence[str], rule: Rule = "official") -> float:
    """VQA accuracy of one answer (visualqa.org/evaluation), in [0, 1].

    An answer counts min(1, matches / 3) against every subset that leaves one annotator out; the mean over these subsets
    is the accuracy.

    By the "official" rule answers are normalised before they are compared as the script of the challenge (VQA's
    `vqaEval.py`) does it: only if the annotators differ; where all of them wrote the same, that very text must be
    given, because it may be a text in the image. "published": always, as visualqa.org/evaluation describes it.
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


def best_of_rows(scores: np.ndarray, count: int = max(CUTOFFS)) -> Iterator[np.ndarray]:
    """Per row of the scores (queries, candidates), its best columns, best first; of equal scores the lower first.

    The scores may be a memory map, of which one row at a time is read.
    """
    for row in scores:
        yield _best(np.asarray(row)[None], count)[0]


def best_of_columns(scores: np.ndarray, count: int = max(CUTOFFS)) -> Iterator[np.ndarray]:
    """The same with columns as queries and rows as candidates; blocks of columns are read at a time."""
    for start in range(0, scores.shape[1], _BLOCK):
        yield from _best(np.ascontiguousarray(scores[:, start : start + _BLOCK].T), count)


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]
