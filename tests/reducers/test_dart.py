"""DART against a plain loop over pivots."""

from dataclasses import replace

import torch
from by_hand import cosine, handed_out
from hypothesis import assume, given
from hypothesis import strategies as st
from reducers.prompts import DECODER_PROMPTS, check, kept_by_hand, prompt_cues, slots_of

from pumer.reducers.dart import DARTConfig


def longest(cues, sample, slots):
    """The at most four of these slots with the longest keys, the longest first."""
    length = {i: sum(float(value.abs()) for head in cues.key[sample] for value in head[i]) for i in slots}
    return sorted(slots, key=lambda i: (-length[i], i))[:4]


def kept_of(cues, config, sample):
    """Image slots that stay: pivots choose in rounds, the same round for all of them."""
    image, states = slots_of(cues, sample, True), cues.tokens.states[sample]
    own = longest(cues, sample, image)
    pivots = own + longest(cues, sample, [i for i in slots_of(cues, sample, False) if image and i > image[0]])
    others = [i for i in image if i not in own]
    best = {i: len(image) for i in others}
    for pivot in pivots:
        for rank, i in enumerate(sorted(others, key=lambda i: (cosine(states[pivot], states[i]), i))):
            best[i] = min(best[i], rank)
    score = {i: -best[i] for i in others} | {i: len(own) - rank for rank, i in enumerate(own)}
    return kept_by_hand(image, score, config.kept(len(image)), ())


@given(st.floats(0.05, 0.95), DECODER_PROMPTS, st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_what_repeats_no_pivot_stays(ratio, prompts, left, known, seed):
    cues = prompt_cues(prompts, seed, left, causal=True, heads=4, known=known)
    assume(cues.tokens.slots[1])  # without an image, a decoder asks no reducer
    config = DARTConfig(layers=(1,), prune_ratio=ratio)
    decision = config.decide(handed_out(cues, config.needs))
    for b in range(len(prompts)):
        check(cues, decision, b, set(slots_of(cues, b, True)) - set(kept_of(cues, config, b)), {})


def test_copies_of_the_pivots_go_first():
    """Ten tokens are the four pivots and six that say the same; four others say something else."""
    cues = prompt_cues([[(0, False), *[(1, False)] * 14, (0, False)]], 0, True, causal=True)
    image, states = slots_of(cues, 0, True), cues.tokens.states[0]
    directions = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    states[:] = directions[0]
    states[image[10:]] = directions[1:]
    cues.key[0, :, image[:4]] *= 100
    decision = DARTConfig(layers=(1,), prune_ratio=6 / 14).decide(cues)
    check(cues, decision, 0, set(image[4:10]), {})


def test_a_sample_whose_keys_are_nan_spoils_no_other():
    prompts = [[(1, False)] * 6 + [(0, False)], [(0, False), *[(1, False)] * 5, (0, False)]]
    cues, config = prompt_cues(prompts, 1, True, causal=True), DARTConfig(layers=(1,), prune_ratio=0.5)
    code = config.decide(cues).code
    cues.key[0], cues.tokens.states[0] = torch.nan, torch.nan
    assert torch.equal(config.decide(cues).code[1], code[1])


def test_half_precision_decides_as_its_values_in_float32_do():
    prompts = [[(0, False), *[(1, False)] * 20, (0, False), (0, False)], [*[(1, False)] * 9, (0, False)]]
    cues = prompt_cues(prompts, 2, True, causal=True)
    config = DARTConfig(layers=(1,), prune_ratio=0.6)

    def decide(dtype):
        tokens = cues.tokens.with_streams(cues.tokens.states.bfloat16().to(dtype))
        return config.decide(replace(cues, tokens=tokens, key=cues.key.bfloat16().to(dtype)))

    assert torch.equal(decide(torch.bfloat16).code, decide(torch.float32).code)


def test_it_reduces_a_decoder():
    assert DARTConfig(layers=(1,), prune_ratio=0.5).places() == [("decoder", 1)]
    assert DARTConfig(layers=(1,)).reducers() == {}
