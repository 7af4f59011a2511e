import shutil

import numpy as np
import pytest
import torch

import pumer
from pumer.evaluation import ranking
from pumer.evaluation.ranking import CandidateSets
from pumer.tasks import Flickr30k
from pumer.tasks.retrieval import images_of
from pumer.tasks.session import Session
from pumer.utils.errors import InputError

REDUCTIONS = {
    "none": pumer.NoReduction(),
    "pumer": pumer.PuMerConfig(layers=(0, 2), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3),
}


@pytest.fixture(params=["vilt", "meter"])
def folder(request, tiny_vilt, tiny_meter):
    return str({"vilt": tiny_vilt, "meter": tiny_meter}[request.param])


@pytest.fixture
def pairs(tiny_flickr):
    return Flickr30k.read(tiny_flickr, "test")


def build(folder, reduction="none", text_length=12):
    model = Flickr30k.model(folder, ())
    torch.manual_seed(1)
    model.rank_output.weight.data.normal_()
    pumer.patch(model, REDUCTIONS[reduction])
    return Session.around(folder, model, Flickr30k(), text_length=text_length)


def rank(session, pairs, galleries=None, **options):
    return ranking.rank(session, CandidateSets(pairs, galleries), **options)


def apart(session, pairs):
    """Scores of all pairs, one forward each."""
    model, inputs = session.model.eval(), session.inputs
    table = np.zeros((len(images_of(pairs)), len(pairs)))
    with torch.no_grad():
        for row, picture in enumerate(images_of(pairs)):
            for column, pair in enumerate(pairs):
                words = inputs.tokenizer([pair.text], truncation=True, max_length=12, return_tensors="pt")
                table[row, column] = model(**words, **inputs.pixels([picture.path])).logits[0, 0]
    return table


def recall_by_hand(table, k, queries):
    """The fraction of queries of which a true candidate has fewer than k candidates before it (rows: images)."""
    true = np.arange(table.shape[0])[:, None] == np.arange(table.shape[1])[None] // 5
    if queries == "image":
        table, true = table.T, true.T
    hits = 0
    for scores, right in zip(table, true, strict=True):
        hits += any(sum(scores > scores[candidate]) < k for candidate in np.flatnonzero(right))
    return hits / len(table)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_recall_equals_a_brute_force_ranking(folder, pairs, reduction, tmp_path):
    session = build(folder, reduction)
    sets = CandidateSets(pairs)
    answers = ranking.rank(session, sets, batch_size=7, folder=tmp_path)
    table = np.load(tmp_path / "scores.npy")
    assert np.abs(table[:3, :15] - apart(session, pairs[:15])).max() < 1e-4
    assert table.std() > 1e-2
    metrics = Flickr30k().metrics(sets.queries, answers)
    assert [len(values) for values in metrics.values()] == [8] * 3 + [40] * 3
    for direction in ("text", "image"):
        for k in (1, 5, 10):
            assert np.mean([value for value, _ in metrics[f"{direction} retrieval, recall@{k}"]]) == recall_by_hand(
                table, k, direction
            )


def test_candidate_sets_rank_among_themselves(folder, pairs):
    session, sets = build(folder), CandidateSets(pairs, "3x2")
    answers = ranking.rank(session, sets, batch_size=16)
    alone = [rank(session, pairs[start : start + 10], batch_size=16) for start in (0, 10, 20)]
    images, captions = [f"image {i}" for i in range(10, 16)], [f"caption {i}" for i in range(50, 80)]
    assert [query.id for query in sets.queries] == images + captions
    assert answers == [a for part in alone for a in part[:2]] + [a for part in alone for a in part[2:]]
    assert all(set(answer.split()) <= known for answer, known in zip(answers, sets.candidates(), strict=True))


def test_an_interrupted_evaluation_goes_on(folder, pairs, tmp_path, monkeypatch):
    session = build(folder)
    whole = rank(session, pairs, batch_size=8)
    filled, fill = [], ranking._fill_block

    def fill_some(block, score, captions):
        if len(filled) == 3:
            raise KeyboardInterrupt
        filled.append(fill(block, score, captions))

    monkeypatch.setattr(ranking, "_fill_block", fill_some)
    with pytest.raises(KeyboardInterrupt):
        rank(session, pairs, batch_size=8, folder=tmp_path)
    assert np.isnan(np.load(tmp_path / "scores.npy")).sum() == 8 * (40 - 3 * 8)
    filled.clear()
    assert rank(session, pairs, batch_size=8, folder=tmp_path) == whole
    assert len(filled) == 2
    monkeypatch.setattr(ranking, "_fill_block", None)  # nothing is left to do
    assert rank(session, pairs, batch_size=5, folder=tmp_path) == whole


def test_scores_of_something_else_are_refused(folder, pairs, tmp_path):
    session = build(folder)
    rank(session, pairs, folder=tmp_path)
    with pytest.raises(InputError, match="holds scores with other pairs, galleries; give scores=ANOTHER_FOLDER"):
        rank(session, pairs[:20], folder=tmp_path, galleries="2x2")
    with pytest.raises(InputError, match="other text_length"):
        rank(build(folder, text_length=10), pairs, folder=tmp_path)
    with pytest.raises(InputError, match="other reduction"):
        rank(build(folder, "pumer"), pairs, folder=tmp_path)
    session.model.rank_output.bias.data += 1
    with pytest.raises(InputError, match="other weights"):
        rank(session, pairs, folder=tmp_path)


def test_folders_without_usable_scores_are_refused(folder, pairs, tmp_path):
    session = build(folder)
    rank(session, pairs[:5], folder=tmp_path / "scores")
    (tmp_path / "scores" / "scores.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match=r"scores\.npy cannot be read .*; remove .*scores to begin anew"):
        rank(session, pairs[:5], folder=tmp_path / "scores")
    (tmp_path / "scores" / "scores.json").write_text("[")
    with pytest.raises(InputError, match=r"scores\.json is not valid JSON.*; remove .*scores to begin anew"):
        rank(session, pairs[:5], folder=tmp_path / "scores")


@pytest.mark.parametrize("damage", [lambda whole: whole[:-4], lambda whole: whole.replace(b"(1, 5)", b"(5, 1)")])
def test_scores_that_lack_a_part_are_not_taken_for_zeros(folder, pairs, tmp_path, damage):
    session = build(folder)
    rank(session, pairs[:5], folder=tmp_path)
    path = tmp_path / "scores.npy"
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"scores\.npy .*; remove .* to begin anew"):
        rank(session, pairs[:5], folder=tmp_path)
    assert path.read_bytes() == before


def test_scores_that_are_no_numbers_are_refused(folder, pairs):
    session = build(folder)
    session.model.rank_output.bias.data.fill_(float("nan"))
    with pytest.raises(InputError, match="not numbers"):
        rank(session, pairs)


@pytest.mark.parametrize("folder_of_scores", [None, "scores"])
def test_a_small_disk_is_refused(folder, pairs, tmp_path, monkeypatch, folder_of_scores):
    session = build(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100})())
    place = folder_of_scores and tmp_path / folder_of_scores
    with pytest.raises(InputError, match=r"needs 0\.0 GiB in .*; give scores=FOLDER on another disk"):
        rank(session, pairs, folder=place)


def test_candidate_sets_are_checked(pairs):
    assert [[image.id for image in each] for each in CandidateSets(pairs).sets] == [list(range(10, 18))]
    sets = CandidateSets(pairs, "2x3")
    assert [[image.id for image in each] for each in sets.sets] == [[10, 11, 12], [13, 14, 15]]
    assert (sets.shape, list(sets.pairs)) == ((6, 15), pairs[:30])
    for galleries in ("50", "0x5", "3 x 2", "axb"):
        with pytest.raises(InputError, match="must be of the form 50x20"):
            CandidateSets(pairs, galleries)
    with pytest.raises(InputError, match="galleries=5x2 needs 10 images, but there are 8"):
        CandidateSets(pairs, "5x2")
