"""Pre-training samples: labels agree with the scene, words and roles with the sentence."""

from dataclasses import replace

import numpy as np
import torch

from benchmarks.pretrain_small.patches import DENSE
from benchmarks.pretrain_small.pool import TEXTS, Source
from benchmarks.pretrain_small.tokenizer import MAX_LENGTH, corpus, train_tokenizer
from pumer.world.scenes import NARROW, WIDE

_SOURCE = Source(train_tokenizer(), seed=7)


def test_a_batch_does_not_depend_on_how_it_was_cut() -> None:
    whole, half = _SOURCE.batch(0, 8), _SOURCE.batch(4, 4)
    for name in whole.__dataclass_fields__:
        assert torch.equal(getattr(whole, name)[8:], getattr(half, name))


def test_questions_and_captions_have_their_own_labels() -> None:
    batch = _SOURCE.batch(0, 100)
    asked = batch.answers >= 0
    assert 0.3 < asked.float().mean() < 0.7
    assert ((batch.answers >= 0).int() + (batch.true >= 0) + (batch.labels >= 0) == 1).all()
    assert (asked | (batch.kinds < 0)).all()
    assert (batch.words[asked] == -100).all()
    masked = batch.words >= 0
    assert (batch.ids[masked] == _SOURCE.tokenizer.token_to_id("[MASK]")).all()
    assert masked.any()


def test_masked_words_do_not_betray_whether_a_caption_is_true() -> None:
    batch = _SOURCE.batch(0, 300)
    masked = (batch.ids == _SOURCE.tokenizer.token_to_id("[MASK]")).any(1)
    shares = [masked[batch.true == value].float().mean().item() for value in (0, 1)]
    assert abs(shares[0] - shares[1]) < 0.25
    assert min(shares) > 0.15


def test_held_out_scenes_are_drawn_for_that_split() -> None:
    batch = replace(_SOURCE, split="heldout", captions=0.0, tasks=0.0).batch(0, 4)
    assert (batch.answers >= 0).all()


def test_sentences_of_the_other_data_sets_are_mixed_in() -> None:
    batch = replace(_SOURCE, tasks=0.5).batch(0, 100)
    labelled, captions = batch.labels >= 0, batch.true >= 0
    assert 0.1 < labelled.float().mean() < 0.4
    assert set(batch.labels[labelled].tolist()) == {0, 1, 2}
    assert (batch.roles[labelled] == 1).any(1).all()
    assert (batch.words[~captions] == -100).all()
    assert (batch.ids[captions] != 0).sum(1).max() > 22, "descriptions"
    assert (replace(_SOURCE, tasks=0.0).batch(0, 10).labels == -100).all()


def test_neighbours_share_a_statement_about_both() -> None:
    batch = replace(_SOURCE, tasks=1.0).batch(0, 100)
    left = (batch.pairs >= 0).nonzero()[:, 0]
    right = left + TEXTS
    assert len(left) > 20
    assert (left % (2 * TEXTS) == TEXTS - 1).all(), "the last sentence of the first of two scenes"
    assert torch.equal(batch.ids[left], batch.ids[right])
    assert (batch.pairs[right] == -100).all()
    assert (batch.answers[left] >= 0).all()
    assert (batch.answers[right] >= 0).all()
    assert 0.2 < batch.pairs[left].float().mean() < 0.8
    assert (replace(_SOURCE, tasks=0.0).batch(0, 10).pairs == -100).all()


def test_every_sentence_of_every_data_set_fits() -> None:
    for layout, least in ((NARROW, 24), (WIDE, 28)):
        source = replace(_SOURCE, tokenizer=train_tokenizer(layout=layout), layout=layout)
        texts = corpus(seed=11, scenes=400, layout=layout)
        longest = max((len(source.tokenizer.encode(text).ids), text) for text in texts)
        assert least < longest[0] <= source.length <= MAX_LENGTH, longest


def test_words_that_name_objects_tell_where_these_are() -> None:
    source = replace(_SOURCE, tasks=1.0, captions=0.0)
    batch, said = source.batch(0, 60), set()
    for row in range(len(batch.ids)):
        labelled = (batch.places[row] >= 0).all(1)
        if not labelled.any():
            continue
        position = batch.dense[row][:, list(DENSE).index("position")] - 1
        shown = {int(place) for place in position[position >= 0]}
        told = {int(place) for places in batch.places[row][labelled] for place in places.nonzero()[:, 0]}
        assert told <= shown, "nothing stands there"
        said.add("entailment" if batch.labels[row] >= 0 else "description")
        words = source.tokenizer.decode(batch.ids[row][labelled].tolist()).split()
        assert not {"[CLS]", "[SEP]", "[MASK]", "[PAD]"} & set(words)
    assert said == {"entailment", "description"}


def test_claims_are_those_of_the_descriptions_and_decide_them() -> None:
    batch = replace(_SOURCE, tasks=1.0, captions=0.0).batch(0, 60)
    told = batch.claims >= 0
    rows = told.any(1)
    assert rows.sum() > 20
    assert (batch.true[rows] >= 0).all()
    every_part = torch.where(told, batch.claims, 1).amin(1)
    assert torch.equal(every_part[rows], batch.true[rows])
    assert (batch.claims[rows] == 0).any()


def test_phrases_are_what_a_reducer_may_merge_without_harm() -> None:
    def phrases(text: str) -> list[str]:
        ids = _SOURCE._ids(text)
        parts = _SOURCE._phrases(ids)
        assert (parts[ids == 0] == -1).all()
        said = _SOURCE.tokenizer.encode(text).tokens
        assert parts[0] == -1, "[CLS] is no part of any"
        return [" ".join(np.array(said)[parts[: len(said)] == part]) for part in dict.fromkeys(parts[1 : len(said)])]

    assert phrases("on which side of the dotted ring is the striped circle?") == [
        "on which side",
        "of",
        "the dotted ring",
        "is",
        "the striped circle",
        "? [SEP]",
    ]
    assert phrases("how many small squares are there?") == ["how many small squares", "are there ? [SEP]"]
