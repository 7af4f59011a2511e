"""Models that shorten every prompt they get: forward and training, configs, copies and saved models."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from shortening.families import (
    BOTH,
    FASTV,
    HALF,
    INSIDE,
    able,
    batch,
    check,
    families,
    few,
    generated,
    samples,
    together,
)
from tiny import covering
from tiny.decoders import DECODERS, IMAGE

import pumer
from pumer import InputError, NoReduction
from pumer.prompts import shorten, shortened
from pumer.reducers import config_from_dict, config_to_dict
from pumer.reducers.shortening.divprune import DivPruneConfig

# ---------------------------------------------------------------- forward


@pytest.mark.parametrize(("family", "config"), covering(able(*DECODERS), INSIDE))
def test_a_forward_gives_logits_of_the_input_s_length(family, config, model):
    inputs = batch(family)
    pumer.patch(model, config)
    output = model(**inputs, output_hidden_states=True)
    assert output.logits.shape[:2] == inputs["input_ids"].shape
    assert {states.shape[1] for states in output.hidden_states} == {output.logits.shape[1]}
    for n, sample in enumerate(samples(family)):
        alone = model(**batch(family, sample)).logits[0]
        torch.testing.assert_close(output.logits[n, -len(sample.ids) :], alone, atol=1e-5, rtol=0)


@families
@pytest.mark.parametrize("padding", ["left", "right"])
def test_the_loss_is_that_of_the_shortened_prompt(padding, family, model):
    inputs = batch(family, padding=padding)
    ids, rank = inputs["input_ids"], inputs["attention_mask"].cumsum(dim=1)
    labels = ids.masked_fill((ids == IMAGE) | (rank < 2) | (inputs["attention_mask"] == 0), -100)
    expected = model(**shorten(model, {**inputs, "labels": labels}, HALF))
    with shortened(model, HALF):
        output = model(**inputs, labels=labels, use_cache=False)
        given = model(**inputs, return_dict=False)[0]
    torch.testing.assert_close(output.loss, expected.loss, atol=1e-6, rtol=0)
    torch.testing.assert_close(given, output.logits, atol=0, rtol=0)
    left = expected_rows(shorten(model, inputs, HALF), expected.logits)
    for n, real in enumerate(inputs["attention_mask"] > 0):
        for rank, row in enumerate(output.logits[n][real]):
            before = max(place for place in left[n] if place <= rank)
            torch.testing.assert_close(row, left[n][before], atol=1e-10, rtol=0)


def expected_rows(short, logits):
    """Of each prompt, the logits of its tokens that stay, by their places in it."""
    places = short["position_ids"][0] if short["position_ids"].ndim == 3 else short["position_ids"]
    return [
        {int(place): row for place, row, real in zip(*sample, strict=True) if real}
        for sample in zip(places, logits, short["attention_mask"], strict=True)
    ]


@few
def test_training_with_checkpoints_is_training_without(family):
    found = []
    for checkpointing in (False, True):
        model = pumer.patch(DECODERS[family].model().double().train(), BOTH)
        if checkpointing:
            model.gradient_checkpointing_enable()
        inputs = batch(family)
        model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)).loss.backward()
        found.append([x.grad for x in model.parameters() if x.grad is not None])
    assert len(found[0]) == len(found[1]) > 0
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


# ---------------------------------------------------------------- patch, unpatch, configs


@few
@together
def test_unpatching_leaves_the_stock_model(family, model):
    classes = [type(part) for part in model.modules()]
    inputs = batch(family)
    before = generated(model, inputs)
    pumer.patch(model, BOTH)
    with shortened(model, DivPruneConfig(prune_ratio=0.8)):
        assert pumer.reduction(model) == replace(FASTV, before=DivPruneConfig(prune_ratio=0.8))
    assert pumer.reduction(model) == BOTH
    fresh = pumer.patch(DECODERS[family].model().double(), BOTH)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(fresh))):
        check(generated(twin, inputs), generated(model, inputs), tolerance=0)
    pumer.unpatch(model)
    assert [type(part) for part in model.modules()] == classes
    assert not any("pumer_reduction" in part.__dict__ for part in model.modules())
    check(generated(model, inputs), before, tolerance=0)


def test_a_model_that_does_not_generate_is_refused():
    from tiny.vilt import VILT

    for config in (HALF, replace(NoReduction(), before=HALF)):
        with pytest.raises(InputError, match="divprune"):
            pumer.patch(VILT.build(), config)


def test_configs_nest():
    plain = {"method": "fastv", "layers": [1], "prune_ratio": 0.5, "before": {"method": "divprune", "prune_ratio": 0.5}}
    config = config_from_dict(plain)
    assert config == BOTH and config.before.kept(10) == 5
    assert config_to_dict(config)["before"] == {**config_to_dict(HALF)}
    for each in (config, HALF, FASTV):
        assert config_from_dict(config_to_dict(each)) == each
    assert "before" not in config_to_dict(FASTV) and "before" not in config_to_dict(HALF)
    for wrong, named in [
        ({"method": "divprune", "prune_ratio": 2}, "prune_ratio"),
        ({"method": "divprune", "ratio": 0.5}, "'ratio'"),
        ({"method": "fastv", "layers": [1], "prune_ratio": 0.5}, "before"),
        ({"method": "divprune", "before": {"method": "divprune"}}, "divprune"),
        ("divprune", "'divprune'"),
    ]:
        with pytest.raises(InputError, match=named):
            config_from_dict({**plain, "before": wrong})


def test_prompts_are_shortened_once():
    with pytest.raises(InputError, match="divprune"):
        DivPruneConfig(before=HALF)
    with pytest.raises(InputError, match="before"):
        replace(FASTV, before=FASTV)


@few
def test_a_saved_model_shortens_when_it_is_loaded(family, model, tmp_path):
    whole = DECODERS[family].model()
    pumer.save(pumer.patch(whole, BOTH), tmp_path)
    assert pumer.reduction(pumer.load(tmp_path)) == BOTH
