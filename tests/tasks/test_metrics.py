"""VQA accuracy against a plain implementation of the published description, recall@k against picking by hand."""

import random
import re
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pumer.tasks import metrics
from pumer.tasks.metrics import best_of_columns, best_of_rows, normalise, soft_score, stripped, vqa_accuracy

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
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("Im", "im"),
        ("ive", "ive"),
        ("id've", "id've"),
        ("lets", "lets"),
        ("let's", "let's"),
        ("shes", "shes"),
        ("she's", "she's"),
        ("somebody'd", "somebodyd"),
        ("ow's'at", "'ow's'at"),
        ("yall'd've", "y'all'd've"),
        ("yalldve", "yalldve"),
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
        ("." * 40 + "x", "." * 8 + "x"),  # the script removes 32
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
        expected = plain_accuracy(normal, annotators)
        assert vqa_accuracy(answer, annotators, "published") == pytest.approx(expected, abs=1e-12)
        if len(set(annotators)) > 1:
            assert vqa_accuracy(answer, annotators) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "annotators", "official", "published"),
    [
        ("Yes", ["yes"] * 10, 0, 1),
        ("yes", ["yes"] * 10, 1, 1),
        (" yes\n", ["yes", "\tyes "] * 5, 1, 1),
        ("no smoking!", ["no smoking!"] * 10, 1, 1),  # a text in the image
        ("no smoking", ["no smoking!"] * 10, 0, 1),
        ("two", ["two"] * 10, 1, 1),
        ("2", ["two"] * 10, 0, 1),
        ("2", ["two"] * 9 + ["Two"], 1, 1),  # alike only in the normal form: they differ
        ("Yes", ["yes"] * 9 + ["no"], 1, 1),
        ("no", ["yes"] * 9 + ["No."], 0.3, 0.3),
    ],
)
def test_what_all_annotators_wrote_alike_is_left_as_written(answer, annotators, official, published):
    assert vqa_accuracy(answer, annotators) == vqa_accuracy(answer, annotators, "official") == pytest.approx(official)
    assert vqa_accuracy(answer, annotators, "published") == pytest.approx(published)


def test_accuracy_takes_the_known_values():
    values = [vqa_accuracy("yes", ("yes",) * matches + ("no",) * (10 - matches)) for matches in range(11)]
    assert values == pytest.approx([0, 0.3, 0.6, 0.9] + [1] * 7)


def test_answers_as_written_are_shared():
    assert stripped(" a\tb\n") is stripped(" a\tb\n")
    assert stripped(" a\tb\n") == "a b"


def test_soft_scores():
    assert [soft_score(matches) for matches in range(6)] == [0, 0.3, 0.6, 0.9, 1, 1]


TABLE = """
aint>ain't arent>aren't cant>can't couldve>could've couldnt>couldn't couldnt've>couldn't've
couldn'tve>couldn't've didnt>didn't doesnt>doesn't dont>don't hadnt>hadn't hadnt've>hadn't've hadn'tve>hadn't've
hasnt>hasn't havent>haven't hed>he'd hed've>he'd've he'dve>he'd've hes>he's howd>how'd howll>how'll hows>how's
isnt>isn't itd>it'd itd've>it'd've it'dve>it'd've itll>it'll maam>ma'am mightve>might've mightnt>mightn't
mightnt've>mightn't've mightn'tve>mightn't've mustve>must've mustnt>mustn't neednt>needn't notve>not've
oclock>o'clock oughtnt>oughtn't ow's'at>'ow's'at 'ows'at>'ow's'at 'ow'sat>'ow's'at shant>shan't shed've>she'd've
she'dve>she'd've shouldve>should've shouldnt>shouldn't shouldnt've>shouldn't've shouldn'tve>shouldn't've
somebodyd've>somebody'd've somebody'dve>somebody'd've somebodyll>somebody'll somebodys>somebody's
someoned>someone'd someoned've>someone'd've someone'dve>someone'd've someonell>someone'll someones>someone's
somethingd>something'd somethingd've>something'd've something'dve>something'd've somethingll>something'll
thats>that's thered>there'd thered've>there'd've there'dve>there'd've therere>there're theres>there's theyd>they'd
theyd've>they'd've they'dve>they'd've theyll>they'll theyre>they're theyve>they've twas>'twas wasnt>wasn't
wed've>we'd've we'dve>we'd've weve>we've werent>weren't whatll>what'll whatre>what're whats>what's whatve>what've
whens>when's whered>where'd wheres>where's whereve>where've whod>who'd whod've>who'd've who'dve>who'd've
wholl>who'll whos>who's whove>who've whyll>why'll whyre>why're whys>why's wont>won't wouldve>would've
wouldnt>wouldn't wouldnt've>wouldn't've wouldn'tve>wouldn't've yall>y'all yall'd've>y'all'd've y'alld've>y'all'd've
y'all'dve>y'all'd've yall'll>y'all'll y'allll>y'all'll youd>you'd youd've>you'd've you'dve>you'd've youll>you'll
youre>you're youve>you've somebody'd>somebodyd
"""
SPELLINGS = dict(pair.split(">") for pair in TABLE.split())  # the official script's table, pair by pair
PIECES = [
    "a", "an", "the", "The", "AN", "zero", "one", "Two", "three", "four", "five", "six", "seven", "eight", "nine",
    "TEN", "none", "eleven", "yes", "No", "red", "blue", "dog's", "its", "3.5", ".5", "3.", "5.0.1", "a.m.", "U.S.A.",
    "1,000", "12,345", "red,blue", "on/off", "t-shirt", "what?!", "[x]", "{y}", "(z)", ";;", '"q"', "@home", "#1",
    "50%", "$5", "10:30", "b=c", "d_e", "<f>", "g\\h", "`i`", "j+k", "l>", "!", "?", "-", ",", "/",
]  # fmt: skip
COUNTS = {
    name: str(value)
    for value, name in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
}
MARKS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]


@cache
def plain_official(answer):
    """The published rules in their order, character by character."""
    for gap in "\n\t":
        answer = " ".join(answer.split(gap))
    answer = answer.strip()
    has_thousands = any(
        answer[i] == "," and answer[i - 1].isdigit() and answer[i + 1].isdigit() for i in range(1, len(answer) - 1)
    )
    without_trace = {
        mark
        for mark in MARKS
        for i, character in enumerate(answer)
        if character == mark and (has_thousands or " " in (answer[i - 1 : i], answer[i + 1 : i + 2]))
    }
    spaced = ""
    for character in answer:
        if character not in MARKS:
            spaced += character
        elif character not in without_trace:
            spaced += " "
    text, removed = "", 0
    for i, character in enumerate(spaced):
        if character != "." or removed == 32 or (i + 1 < len(spaced) and spaced[i + 1].isdigit()):
            text += character
        else:
            removed += 1
    words = [{"none": "0", **COUNTS}.get(word, word) for word in text.lower().split(" ") if word]
    return " ".join(SPELLINGS.get(word, word) for word in words if word not in ("a", "an", "the"))


def plain_as_written(answer):
    return answer.replace("\n", " ").replace("\t", " ").strip()


def plain_rule(answer, annotators, published):
    """What counts as equal: as written if all annotators wrote the same and the rule is the script's."""
    given = [plain_as_written(each) for each in annotators]
    if not published and given.count(given[0]) == len(given):
        return plain_accuracy(plain_as_written(answer), given)
    return plain_accuracy(plain_official(answer), [plain_official(each) for each in annotators])


def test_ten_thousand_cases_equal_the_plain_implementation():
    pick, seen, hits, apart = random.Random(0), set(), 0, 0
    right = sorted(set(SPELLINGS.values()))
    bare = [whole.replace("'", "") for whole in (*right, "i'm", "i've", "let's", "she's")]
    pieces = [*PIECES, *SPELLINGS, *right, *bare]
    for _ in range(10_000):
        words = [pick.choice(pieces) for _ in range(pick.randint(1, 4))]
        answer = "".join(word + pick.choice(("  ", " ", "\t", "\n", "", " ")) for word in words)
        assert normalise(answer) == plain_official(answer), answer
        seen |= set(words)
        truth = pick.choice((answer, answer.upper(), f" {answer}", plain_official(answer)))
        others = [pick.choice(pieces) for _ in range(10)]
        matches = pick.choice((*range(11), 10, 10, 10))
        annotators = pick.sample([truth] * matches + others[matches:], 10)
        official, published = (vqa_accuracy(answer, annotators, rule) for rule in ("official", "published"))
        assert official == pytest.approx(plain_rule(answer, annotators, published=False), abs=1e-12)
        assert published == pytest.approx(plain_rule(answer, annotators, published=True), abs=1e-12)
        hits += 0 < official < 1
        apart += official != published
    assert seen == set(pieces)
    assert hits > 1000
    assert apart > 500


@pytest.mark.parametrize("rule", ["official", "published"])
def test_what_the_annotators_gave_is_counted_once_for_all_answers(rule, monkeypatch):
    annotators, seen = [f"{rule} {number}" for number in range(10)], []

    def counting(form):
        return lambda text: seen.append(text) or form(text)

    for form in (normalise, stripped):
        monkeypatch.setattr(metrics, form.__name__, counting(form))
    assert [vqa_accuracy(answer, annotators, rule) for answer in annotators] == [pytest.approx(0.3)] * 10
    assert len(seen) < 5 * len(annotators)


def by_hand(row, count):
    """Candidates taken one by one: always the best that is left, of equals the first."""
    left, found = list(range(len(row))), []
    while left and len(found) < count:
        found.append(max(left, key=lambda candidate: (row[candidate], -candidate)))
        left.remove(found[-1])
    return found


@given(st.integers(1, 9), st.integers(1, 30), st.integers(1, 12), st.integers(0, 10_000), st.sampled_from([2, 1000]))
def test_best_equals_picking_one_by_one(rows, columns, count, seed, values):
    scores = np.random.default_rng(seed).integers(values, size=(rows, columns)).astype(np.float32)  # 2: many ties
    assert [list(best) for best in best_of_rows(scores, count)] == [by_hand(list(row), count) for row in scores]
    assert [list(best) for best in best_of_columns(scores, count)] == [by_hand(list(row), count) for row in scores.T]


def test_more_columns_than_a_block():
    scores = np.random.default_rng(0).normal(size=(12, 2500)).astype(np.float32)
    best = np.stack(list(best_of_columns(scores, 3)))
    assert best.shape == (2500, 3)
    assert np.array_equal(best[:, 0], scores.argmax(axis=0))
