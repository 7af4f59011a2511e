"""SparseVLM against plain loops: who rates, who is selected, and who goes into which cluster."""

from dataclasses import replace
from math import ceil, exp
from unittest import mock

import pytest
import torch
from by_hand import handed_out
from hypothesis import assume, given
from hypothesis import strategies as st
from reducers.prompts import DECODER_PROMPTS, PROMPTS, attention_by_hand, check, held_by, prompt_cues, slots_of

from pumer.reducers import cues as module
from pumer.reducers.sparsevlm import SparseVLMConfig

RATIOS = st.floats(0.05, 0.95)
LONG = st.lists(
    st.lists(st.sampled_from([(0, False), (1, False), (1, False)]), min_size=20, max_size=45), min_size=1, max_size=2
)
"""Enough image tokens for several clusters."""


def raters_by_hand(states, words, image):
    """Words whose similarity to the image is not below the mean."""
    likeness = dict.fromkeys(words, 0.0)
    for v in image:
        logits = {t: float(states[v] @ states[t]) for t in words}
        most = max(logits.values(), default=0)
        whole = sum(exp(logit - most) for logit in logits.values())
        for t in words:
            likeness[t] += exp(logits[t] - most) / whole / len(image)
    return [t for t in words if likeness[t] >= sum(likeness.values()) / len(words) * (1 - 1e-6)]


def clusters_by_hand(states, tokens, count):
    """Density peaks among the tokens: which one goes into which, centres left out."""
    width = len(states[0])

    def distance(i, j):
        return float((states[i] - states[j]).norm()) / width**0.5

    density = {i: exp(-sum(sorted(distance(i, j) ** 2 for j in tokens)[:count]) / count) for i in tokens}
    apart = max(distance(i, j) for i in tokens for j in tokens)
    gap = {
        i: min([distance(i, j) for j in tokens if (density[j], -j) > (density[i], -i)], default=apart) for i in tokens
    }
    centres = sorted(tokens, key=lambda i: (-density[i] * gap[i], i))[:count]
    return {i: min(centres, key=lambda j: (distance(i, j), j)) for i in tokens if i not in centres}


def reduced_by_hand(config, cues, sample, most=module.ASKING):
    """Who is pruned, and who goes into whom."""
    image, held, states = slots_of(cues, sample, True), held_by(cues, sample), cues.tokens.states[sample]
    words = [i for i in slots_of(cues, sample, False)[-most if cues.causal else 0 :] if image and i > image[0]]
    rating = raters_by_hand(states, words, image)
    rows, real = attention_by_hand(cues, sample, rating)
    score = dict(zip(real, rows.sum(dim=(0, 1)).tolist(), strict=True))
    n = len(image)
    gone = max(min(round(config.prune_ratio * n), n - 1), 0)
    absorbed = max(min(round(config.recycle_ratio * gone), 9 * (n - gone - 1)), 0)
    best = max(n - gone - ceil(absorbed / 9), len([i for i in image if i in held]))
    count = max(n - gone - best, 0)
    order = sorted(image, key=lambda i: (i not in held, -score[i], i))
    recycled = order[best : best + absorbed + count] if count else []
    into = clusters_by_hand(states, sorted(recycled), count) if count else {}
    return set(order[best:]) - set(recycled), into


def check_all(config, cues, most=module.ASKING):
    assume(all(cues.tokens.slots))  # without an image, a decoder asks no reducer; without a text, there is no prompt
    decision = config.decide(handed_out(cues, config.needs))
    assert not decision.proportional
    for b in range(len(cues.tokens.size)):
        check(cues, decision, b, *reduced_by_hand(config, cues, b, most))


@given(RATIOS, st.sampled_from([0, 0.3, 0.9]), DECODER_PROMPTS, st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_raters_select_and_the_next_best_are_clustered(ratio, recycle, prompts, left, known, seed):
    config = SparseVLMConfig(layers=(1,), prune_ratio=ratio, recycle_ratio=recycle)
    check_all(config, prompt_cues(prompts, seed, left, causal=True, heads=4, known=known))


@given(RATIOS, st.sampled_from([0.5, 0.9]), LONG, st.booleans(), st.integers(0, 2**31))
def test_large_images_have_several_clusters(ratio, recycle, prompts, left, seed):
    config = SparseVLMConfig(layers=(1,), prune_ratio=ratio, recycle_ratio=recycle)
    check_all(config, prompt_cues(prompts, seed, left, causal=True, known=True))


@given(RATIOS, st.integers(1, 4), DECODER_PROMPTS, st.integers(0, 2**31))
def test_only_the_last_words_rate(ratio, most, prompts, seed):
    with mock.patch.object(module, "ASKING", most):
        check_all(SparseVLMConfig(layers=(1,), prune_ratio=ratio), prompt_cues(prompts, seed, True, causal=True), most)


@given(RATIOS, st.sampled_from([0.3, 0.9]), PROMPTS, st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_what_is_protected_stays_alone(ratio, recycle, prompts, left, causal, seed):
    config = SparseVLMConfig(layers=(1,), prune_ratio=ratio, recycle_ratio=recycle)
    check_all(config, prompt_cues(prompts, seed, left, causal=causal))


def test_a_word_that_resembles_the_image_rates_alone():
    """The second word's state is that of the image; the first one would select other tokens."""
    cues = prompt_cues([[*[(1, False)] * 8, (0, False), (0, False)]], 0, True, causal=True)
    image, (first, second), states = slots_of(cues, 0, True), slots_of(cues, 0, False), cues.tokens.states[0]
    states[:], states[first] = torch.ones(5), -torch.ones(5)
    cues.key.zero_()
    cues.key[0, :, image[:4], 0] = 9
    cues.query.zero_()
    cues.query[0, :, first, 0], cues.query[0, :, second, 0] = 9, -9
    decision = SparseVLMConfig(layers=(1,), prune_ratio=0.5, recycle_ratio=0).decide(cues)
    check(cues, decision, 0, set(image[:4]), {})


def test_copies_meet_in_one_cluster():
    """Twenty tokens of two kinds are recycled: each kind is one cluster."""
    cues = prompt_cues([[*[(1, False)] * 24, (0, False)]], 0, True, causal=True)
    image, states = slots_of(cues, 0, True), cues.tokens.states[0]
    states[image[0::2]], states[image[1::2]] = torch.zeros(5).double(), torch.ones(5).double()
    cues.key.zero_()
    decision = SparseVLMConfig(layers=(1,), prune_ratio=18 / 24, recycle_ratio=0.99).decide(cues)
    into = {i: image[4 + k % 2] for k, i in enumerate(image) if k > 5}
    check(cues, decision, 0, set(), into)


@pytest.mark.parametrize("recycle", [0, 0.9])
def test_a_sample_whose_states_are_nan_spoils_no_other(recycle):
    prompts = [[(1, False)] * 16 + [(0, False)], [(0, False), *[(1, False)] * 15, (0, False)]]
    cues = prompt_cues(prompts, 1, True, causal=True)
    config = SparseVLMConfig(layers=(1,), prune_ratio=0.5, recycle_ratio=recycle)
    code = config.decide(cues).code
    cues.tokens.states[0], cues.query[0] = torch.nan, torch.nan
    assert torch.equal(config.decide(cues).code[1], code[1])


def test_half_precision_decides_as_its_values_in_float32_do():
    prompts = [[(0, False), *[(1, False)] * 20, (0, False), (0, False)], [*[(1, False)] * 9, (0, False)]]
    cues = prompt_cues(prompts, 2, True, causal=True)
    config = SparseVLMConfig(layers=(1,), prune_ratio=0.6)

    def decide(dtype):
        states, key, query = (x.bfloat16().to(dtype) for x in (cues.tokens.states, cues.key, cues.query))
        return config.decide(replace(cues, tokens=cues.tokens.with_streams(states), key=key, query=query)).code

    assert torch.equal(decide(torch.bfloat16), decide(torch.float32))


def test_it_reduces_a_decoder():
    config = SparseVLMConfig(layers=(2, 6), prune_ratio=0.5)
    assert config.places() == [("decoder", 2), ("decoder", 6)]
    assert [(config.left(n), config.merges(n)) for n in (1, 2, 100, 576)] == [(1, 0), (1, 0), (50, 15), (288, 86)]
    assert SparseVLMConfig(layers=(2,)).reducers() == {}
