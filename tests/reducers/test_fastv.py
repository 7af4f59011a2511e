"""FastV against a plain loop; what it refuses."""

import pytest
import torch
from by_hand import handed_out
from hypothesis import given
from hypothesis import strategies as st
from reducers.prompts import DECODER_PROMPTS, attention_by_hand, check, kept_by_hand, prompt_cues, slots_of

from pumer import InputError
from pumer.reducers.fastv import FastVConfig


@given(st.floats(0.05, 0.95), DECODER_PROMPTS, st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_what_the_last_token_attends_to_stays(ratio, prompts, left, known, seed):
    cues = prompt_cues(prompts, seed, left, causal=True, heads=4, known=known)
    config = FastVConfig(layers=(1,), prune_ratio=ratio)
    decision = config.decide(handed_out(cues, config.needs))
    for b in range(len(prompts)):
        image, last = slots_of(cues, b, True), int(cues.tokens.mask[b].nonzero()[-1, 0])
        rows, real = attention_by_hand(cues, b, [last])
        score = dict(zip(real, rows[:, 0].mean(dim=0).tolist(), strict=True))
        kept = kept_by_hand(image, score, config.kept(len(image)), set())
        check(cues, decision, b, set(image) - set(kept), {})


def test_ties_go_to_the_first_tokens():
    cues = prompt_cues([[(0, False), *[(1, False)] * 6, (0, False)]], 0, True, causal=True)
    cues.key.zero_()
    decision = FastVConfig(layers=(1,), prune_ratio=0.5).decide(cues)
    check(cues, decision, 0, set(slots_of(cues, 0, True)[3:]), {})


def test_a_sample_whose_scores_are_nan_spoils_no_other():
    prompts = [[(1, False)] * 6 + [(0, False)], [(0, False), *[(1, False)] * 5, (0, False)]]
    cues, config = prompt_cues(prompts, 1, True, causal=True), FastVConfig(layers=(1,), prune_ratio=0.5)
    code = config.decide(cues).code
    cues.query[0] = torch.nan
    assert torch.equal(config.decide(cues).code[1], code[1])


def test_it_prunes_in_one_layer_of_a_decoder():
    config = FastVConfig(layers=(2,), prune_ratio=0.5)
    assert config.places() == [("decoder", 2)] and list(config.reducers()) == [("decoder", 2)]
    assert FastVConfig(layers=(2,)).reducers() == {}
    with pytest.raises(InputError, match=r"layers is \[2, 5\]"):
        FastVConfig(layers=(5, 2), prune_ratio=0.5)
    with pytest.raises(InputError, match="stack"):
        FastVConfig(layers=(2,), prune_ratio=0.5, stack="vision")
