"""iLLaVA against a loop over one sample: who stays, who goes into whom; in prompts and in an encoder."""

from dataclasses import replace

import pytest
import torch
from by_hand import cosine, groups, handed_out, image_columns, random_cues
from hypothesis import given
from hypothesis import strategies as st
from reducers.prompts import PROMPTS, attention_by_hand, check, held_by, kept_by_hand, prompt_cues, slots_of

from pumer.reducers.illava import ILLaVAConfig
from pumer.utils.errors import InputError

RATIOS = st.one_of(st.sampled_from([0.3, 0.5]), st.floats(0.01, 0.99))
SEEDS = st.integers(0, 2**31)


def merged_by_hand(ratio, image, score, key, held):
    """Which image slot goes into which, of one sample."""
    n = len(image)
    left = n - max(min(round(ratio * n), n - 2), 0)
    kept = kept_by_hand(image, score, min(max(left, len(held & set(image)) + 1), n), held)
    key, takes = key.mean(dim=0), [i for i in kept if i not in held]
    lost = [i for i in image if i not in kept]
    return {i: max(takes, key=lambda other: (cosine(key[i], key[other]), -other)) for i in lost}


@given(RATIOS, PROMPTS, st.booleans(), st.booleans(), SEEDS)
def test_in_a_prompt(ratio, prompts, left, causal, seed):
    cues = prompt_cues(prompts, seed, left, causal=causal, heads=4 if causal else 2)
    config = ILLaVAConfig(layers=(8,), prune_ratio=ratio)
    decision = config.decide(handed_out(cues, config.needs))
    for b in range(len(prompts)):
        real = cues.tokens.mask[b].nonzero()[:, 0].tolist()
        most = min(len(real), 32)
        rows, _ = attention_by_hand(cues, b, [real[i * len(real) // most] for i in range(most)])
        score = dict(zip(real, rows.sum(dim=(0, 1)).tolist(), strict=True))
        into = merged_by_hand(ratio, slots_of(cues, b, True), score, cues.key[b], held_by(cues, b))
        check(cues, decision, b, set(), into)


@given(RATIOS, st.lists(st.integers(1, 20), min_size=1, max_size=3), SEEDS)
def test_in_an_encoder_cls_stays_alone(ratio, lengths, seed):
    cues = random_cues([(0, n) for n in lengths], 0, seed, one_stream=True)
    config = ILLaVAConfig(layers=(5,), stack="vision", prune_ratio=ratio)
    decision = config.decide(handed_out(cues, config.needs))
    assert not decision.proportional
    for b, n in enumerate(lengths):
        score = image_columns(cues, b, cues.query[b][:, :n]).sum(dim=(0, 1))
        into = merged_by_hand(ratio, list(range(n)), score.tolist(), cues.image_key[b], {0})
        expected = [[i, *sorted(j for j, to in into.items() if to == i)] for i in range(n) if i not in into]
        assert groups(decision, b, 0) == ([], expected)
        assert len(expected) == config.left(n)


def test_many_can_go_into_one():
    cues = prompt_cues([[(0, False), *[(1, False)] * 9]], 0, True, causal=True)
    cues.key[:] = cues.key[:, :, :1]  # all alike: the first one that stays takes in everything
    config = ILLaVAConfig(layers=(8,), prune_ratio=0.5)
    reduced = cues.tokens.reduce(config.decide(cues))
    assert sorted(reduced.size[0].tolist())[-2] <= 3 and reduced.size.sum() == cues.tokens.size.sum()
    assert reduced.lengths.tolist() == [[1, 5]]


@pytest.mark.parametrize("poison", ["key", "query"])
def test_a_broken_sample_breaks_no_other(poison):
    prompt = [(0, False), *[(1, False)] * 9, (0, False)]
    cues, config = prompt_cues([prompt, prompt], 3, True, causal=True), ILLaVAConfig(layers=(8,), prune_ratio=0.6)
    expected = config.decide(cues)
    broken = getattr(cues, poison).clone()
    broken[0] = torch.nan
    found = cues.tokens.reduce(config.decide(replace(cues, **{poison: broken})))
    assert torch.equal(found.states[1], cues.tokens.reduce(expected).states[1])
    assert found.lengths.tolist() == [[2, 4]] * 2


def test_nothing_happens_without_anything_to_merge():
    assert not ILLaVAConfig(layers=(8,)).reducers()
    cues = prompt_cues([[(0, False), (1, False), (1, False)], [(0, False)]], 0, True, causal=True)
    decision = ILLaVAConfig(layers=(8,), prune_ratio=0.9).decide(cues)
    for b in range(2):
        check(cues, decision, b, set(), {})


def test_a_ratio_of_one_is_refused():
    with pytest.raises(InputError, match="prune_ratio"):
        ILLaVAConfig(layers=(8,), prune_ratio=1.0)


def test_encoder_and_decoder_each_have_their_own_ratio():
    config = ILLaVAConfig(layers=(8,), prune_ratio=0.3, vision_layers=(6, 5), vision_prune_ratio=0.1)
    assert config.places() == [("vision", 5), ("vision", 6), ("decoder", 8)]
    assert {place: reducer.prune_ratio for place, reducer in config.reducers().items()} == {
        ("vision", 5): 0.1,
        ("vision", 6): 0.1,
        ("decoder", 8): 0.3,
    }
    assert list(ILLaVAConfig(layers=(8,), prune_ratio=0.3, vision_layers=(5,)).reducers()) == [("decoder", 8)]
    with pytest.raises(InputError, match="vision_layers"):
        ILLaVAConfig(layers=(8,), stack="vision", prune_ratio=0.3, vision_layers=(5,))
