"""The training forward pass equals transformers' own; growing changes nothing; every head learns."""

import math
from dataclasses import replace
from unittest import mock

import pytest
import torch

from benchmarks.pretrain_small.pool import Source
from benchmarks.pretrain_small.small import small_vilt
from benchmarks.pretrain_small.tokenizer import train_tokenizer
from benchmarks.pretrain_small.trainee import _phrasing, choose_patches, losses
from benchmarks.pretrain_small.trainee_vilt import ViltTrainee
from pumer.functional import asked_for, propose, text_saliency
from pumer.reducers import PuMerConfig

_SOURCE = Source(train_tokenizer(), seed=7)


def trainee(layers: int) -> ViltTrainee:
    config = small_vilt(layers)
    config.initializer_range = 0.2
    return ViltTrainee(config).eval()


def test_the_fast_pass_equals_transformers() -> None:
    model, batch = trainee(2), _SOURCE.batch(0, 4)
    pixels = batch.images.permute(0, 3, 1, 2).float() / 127.5 - 1
    ordered = mock.patch("torch.multinomial", lambda weights, count, **_: torch.arange(count))
    with torch.no_grad(), ordered:
        expected = model.model(
            input_ids=batch.ids,
            attention_mask=(batch.ids != 0).long(),
            pixel_values=pixels,
            pixel_mask=torch.ones(pixels.shape[0], *pixels.shape[2:], dtype=torch.long),
        ).logits
        torch.testing.assert_close(model(batch)["answers"], expected, atol=1e-4, rtol=1e-4)


def test_growing_keeps_the_function() -> None:
    model, batch = trainee(2), _SOURCE.batch(0, 4)
    grown = model.grown(5, (0, 3)).eval()
    assert grown.depth == 5
    with torch.no_grad():
        before, after = model(batch), grown(batch)
    for name in ("answers", "match", "words"):
        torch.testing.assert_close(before[name], after[name], atol=1e-5, rtol=1e-5)


def test_chosen_patches_are_the_objects_first() -> None:
    batch = _SOURCE.batch(0, 8)
    keep = choose_patches(batch, 60)
    shown = batch.dense[:, :, 0].gather(1, keep) > 0
    counts = (batch.dense[:, :, 0] > 0).sum(1).clamp(max=60)
    assert torch.equal(shown.sum(1), counts)
    assert (keep.diff(dim=1) > 0).all()


def test_every_parameter_gets_a_gradient() -> None:
    model, batch = trainee(3), _SOURCE.batch(0, 30)
    keep = choose_patches(batch, 40)
    sum(losses(model(batch, keep), batch, keep).values()).backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert idle == set()


def test_every_head_grows_along() -> None:
    model = trainee(2)
    before, after = model.state_dict(), model.grown(3, (0, 1)).state_dict()
    heads = [name for name in before if not name.startswith("model.")]
    assert {name.split(".")[0] for name in heads} >= {"label", "match", "words", "dense", "role", "place"}
    assert all(torch.equal(before[name], after[name]) for name in heads)


def test_a_batch_without_a_kind_of_sentence_has_finite_losses() -> None:
    for captions, tasks in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        batch = replace(_SOURCE, captions=captions, tasks=tasks).batch(0, 4)
        parts = losses(trainee(1)(batch), batch, None)
        assert all(loss.isfinite() for loss in parts.values()), parts


def test_words_are_told_to_attend_by_what_a_reducer_prunes_by() -> None:
    model, batch, seen = trainee(3), _SOURCE.batch(0, 4), []

    def noted(rows: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        seen.append(text_saliency(rows, words > 0)[:, words.shape[1] + 1 :])  # of the patches, without words and [CLS]
        return asked_for(rows, words)

    with torch.no_grad():
        told = model(batch)["asked_for"]
        with mock.patch("pumer.reducers.decisions.asked_for", noted):
            model(batch, None, PuMerConfig(layers=(2,), prune_ratio=0.1))
    (saliency,) = seen
    torch.testing.assert_close(told[:, 0], saliency / saliency.sum(1, keepdim=True))
    assert told.shape[1] == 1, "of layers 2, 4, 5, 6 and 8 only the first is there"


def test_words_are_told_apart_by_what_a_reducer_merges_by() -> None:
    model, batch, seen = trainee(3), _SOURCE.batch(0, 4), []

    def noted(features: torch.Tensor, outside: torch.Tensor, spared: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(features[:, : batch.ids.shape[1]])
        return propose(features, outside, spared)

    with torch.no_grad():
        told = model(batch)["alike"]
        with mock.patch("pumer.reducers.decisions.propose", noted):
            model(batch, None, PuMerConfig(layers=(2,), text_merge_ratio=0.2))
    (features,) = seen
    real = batch.ids != 0
    pairs = real[:, :, None] & real[:, None]
    torch.testing.assert_close(told[:, 0][pairs], (features @ features.transpose(1, 2))[pairs])


def test_the_phrase_loss_is_how_surprising_neighbours_of_the_own_phrase_are() -> None:
    generator = torch.Generator().manual_seed(0)
    phrases = torch.tensor([[-1, 0, 0, 1, 1, 1, 2, -1], [-1, 0, 0, 0, 1, 2, 2, 3]])
    alike = 2 * torch.rand(2, 3, 8, 8, generator=generator) - 1
    surprises = []
    for sample, of in enumerate(phrases.tolist()):
        for layer in range(3):
            for i, part in enumerate(of):
                weights = {j: math.exp(alike[sample, layer, i, j] / 0.1) for j in range(8) if j != i and of[j] >= 0}
                own = sum(weight for j, weight in weights.items() if of[j] == part)
                if part >= 0 and own:
                    surprises.append(-math.log(own / sum(weights.values())))
    assert _phrasing(alike, phrases).item() == pytest.approx(sum(surprises) / len(surprises), rel=1e-4)
