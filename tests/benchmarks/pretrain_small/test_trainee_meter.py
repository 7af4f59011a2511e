"""METER's training forward pass equals the model's own; what it borrows from ViLT; every head learns."""

from unittest import mock

import torch
from transformers import ViltForQuestionAnswering

from benchmarks.pretrain_small.pool import Source
from benchmarks.pretrain_small.small import small_meter, small_vilt
from benchmarks.pretrain_small.tokenizer import train_tokenizer
from benchmarks.pretrain_small.trainee import choose_patches, losses
from benchmarks.pretrain_small.trainee_meter import MeterTrainee
from pumer.functional import propose
from pumer.reducers import PuMerConfig

_SOURCE = Source(train_tokenizer(), seed=7)


def trainee() -> MeterTrainee:
    torch.manual_seed(0)
    config = small_meter(pairs=3)
    config.initializer_range = 0.2
    return MeterTrainee(config).eval()


def test_the_pass_equals_the_models_own() -> None:
    model, batch = trainee(), _SOURCE.batch(0, 4)
    pixels = batch.images.permute(0, 3, 1, 2).float() / 127.5 - 1
    inputs = {"input_ids": batch.ids, "attention_mask": (batch.ids != 0).long(), "pixel_values": pixels}
    with torch.no_grad():
        torch.testing.assert_close(model(batch)["answers"], model.model(**inputs).logits, atol=1e-4, rtol=1e-4)


def test_words_are_merged_where_it_says() -> None:
    model, batch = trainee(), _SOURCE.batch(0, 4)
    keep = choose_patches(batch, 40)
    with torch.no_grad():
        plain = model(batch, keep)
        merged = model(batch, keep, PuMerConfig(layers=(0, 2), text_merge_ratio=0.3))
    assert set(merged) == {"answers", "match", "words", "label", "pair", "places", "claims"} < set(plain)
    assert merged["words"].shape == plain["words"].shape
    assert (merged["answers"] - plain["answers"]).abs().max() > 1e-3


def test_words_are_told_apart_by_what_a_reducer_merges_by() -> None:
    model, batch, seen = trainee(), _SOURCE.batch(0, 4), []

    def noted(features: torch.Tensor, outside: torch.Tensor, spared: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(features[:, : batch.ids.shape[1]])
        return propose(features, outside, spared)

    with torch.no_grad():
        told = model(batch)["alike"]
        with mock.patch("pumer.reducers.decisions.propose", noted):
            model(batch, None, PuMerConfig(layers=(0,), text_merge_ratio=0.2))
    (features,) = seen
    real = batch.ids != 0
    pairs = real[:, :, None] & real[:, None]
    torch.testing.assert_close(told[:, 0][pairs], (features @ features.transpose(1, 2))[pairs])


def test_it_sees_with_the_eyes_of_a_vilt() -> None:
    """Without the LayerNorm that ViLT has not, the borrowed layers compute what they compute on ViLT's patches."""
    torch.manual_seed(1)
    config = small_vilt(4)
    config.initializer_range = 0.2
    vilt, meter, batch = ViltForQuestionAnswering(config).eval(), trainee(), _SOURCE.batch(0, 2)
    meter.borrow(vilt)
    vision, theirs = meter.model.meter.vision_model, vilt.vilt.embeddings
    pixels = batch.images.permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        patches = theirs.patch_embeddings(pixels).flatten(2).transpose(1, 2)
        states = torch.cat([theirs.cls_token.expand(len(patches), -1, -1), patches], 1) + theirs.position_embeddings
        states = states + theirs.token_type_embeddings.weight[1]
        torch.testing.assert_close(vision.embeddings(pixels), states, atol=1e-5, rtol=1e-5)
        ours = states
        for layer, other in zip(vision.encoder.layers, vilt.vilt.encoder.layer, strict=True):
            ours = layer(ours)
            states = other(states)
            states = states[0] if isinstance(states, tuple) else states
    torch.testing.assert_close(ours, states, atol=1e-4, rtol=1e-4)


def test_every_parameter_gets_a_gradient() -> None:
    model, batch = trainee(), _SOURCE.batch(0, 30)
    keep = choose_patches(batch, 40)
    sum(losses(model(batch, keep), batch, keep).values()).backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == set()
