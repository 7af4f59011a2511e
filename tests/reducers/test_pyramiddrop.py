"""PyramidDrop against a plain loop: of what one stage leaves, the next one keeps a part."""

from dataclasses import replace

import torch
from by_hand import handed_out
from hypothesis import given
from hypothesis import strategies as st
from reducers.prompts import DECODER_PROMPTS, attention_by_hand, check, kept_by_hand, prompt_cues, slots_of

from pumer.reducers.cues import Cues
from pumer.reducers.pyramiddrop import PyramidDropConfig


def kept_of(cues, config, sample):
    """Image slots that one stage keeps."""
    image, last = slots_of(cues, sample, True), int(cues.tokens.mask[sample].nonzero()[-1, 0])
    rows, real = attention_by_hand(cues, sample, [last])
    score = dict(zip(real, rows[:, 0].mean(dim=0).tolist(), strict=True))
    return kept_by_hand(image, score, config.kept(len(image)), ())


@given(st.floats(0.05, 0.95), DECODER_PROMPTS, st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_each_stage_keeps_a_part_of_what_is_left(ratio, prompts, left, known, seed):
    cues = prompt_cues(prompts, seed, left, causal=True, heads=4, known=known)
    config, random = PyramidDropConfig(layers=(1, 3), prune_ratio=ratio), torch.Generator().manual_seed(seed)
    for reducer in config.reducers().values():
        decision = reducer.decide(handed_out(cues, reducer.needs))
        for b in range(len(prompts)):
            check(cues, decision, b, set(slots_of(cues, b, True)) - set(kept_of(cues, config, b)), {})
        tokens = cues.tokens.reduce(decision)
        N = tokens.size.shape[1]
        start = torch.where(tokens.mask, torch.arange(N), -1)
        tokens = replace(tokens, origin=lambda start=start: start, history=())
        key, query = (torch.randn(len(prompts), heads, N, 6, dtype=torch.float64, generator=random) for heads in (2, 4))
        cues = Cues(tokens, key, query, tokens.bias, causal=True)


def test_its_stages_are_layers_of_a_decoder():
    config = PyramidDropConfig(layers=(5, 1, 3), prune_ratio=0.5)
    assert list(config.reducers()) == config.places() == [("decoder", 1), ("decoder", 3), ("decoder", 5)]
    left = [576]
    for _ in config.layers:
        left.append(config.kept(left[-1]))
    assert left == [576, 288, 144, 72], "the paper's stages of LLaVA-1.5"
    assert PyramidDropConfig(layers=(1, 3)).reducers() == {}
