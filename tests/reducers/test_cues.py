"""Rows of a decoder's attention against plain loops: causal, with heads that share a key, padded on either side."""

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reducers.prompts import DECODER_PROMPTS, attention_by_hand, prompt_cues, slots_of

from pumer.reducers import cues as module

HEADS = st.sampled_from([2, 4, 6])
SEEDS = st.integers(0, 2**31)


def check_rows(cues, sample, found, there, slots):
    """Rows ``(H, R, V)`` of one sample, of which those that are there are those of the tokens in these slots."""
    image = slots_of(cues, sample, True)
    rows, real = attention_by_hand(cues, sample, slots)
    assert int(there.sum()) == len(slots)
    expected = rows[:, :, [real.index(i) for i in image]]
    torch.testing.assert_close(found[:, there, : len(image)], expected, atol=1e-9, rtol=1e-9)
    assert found.isfinite().all(), "a row that is not there is multiplied by zero"


@given(DECODER_PROMPTS, st.booleans(), HEADS, SEEDS)
def test_the_last_row_of_a_causal_attention(prompts, left, heads, seed):
    cues = prompt_cues(prompts, seed, left, causal=True, heads=heads)
    found = cues.last_row()
    assert found.shape == (len(prompts), heads, cues.tokens.slots[1])
    for b in range(len(prompts)):
        last = int(cues.tokens.mask[b].nonzero()[-1, 0])
        check_rows(cues, b, found[b, :, None], torch.ones(1, dtype=torch.bool), [last])


@given(DECODER_PROMPTS, st.booleans(), HEADS, SEEDS)
def test_text_rows_of_a_causal_attention(prompts, left, heads, seed):
    cues = prompt_cues(prompts, seed, left, causal=True, heads=heads)
    found = cues.text_rows()
    for b in range(len(prompts)):
        check_rows(cues, b, found[b], cues.text_mask[b], slots_of(cues, b, False))


@given(DECODER_PROMPTS, st.booleans(), HEADS, st.integers(1, 20), SEEDS)
def test_the_last_text_tokens_ask(prompts, left, heads, most, seed):
    cues = prompt_cues(prompts, seed, left, causal=True, heads=heads)
    with mock.patch.object(module, "ASKING", most):
        found, there = cues.asking_rows()
    assert found.shape[2] == there.shape[1] == min(most, cues.tokens.slots[0])
    for b in range(len(prompts)):
        check_rows(cues, b, found[b], there[b], slots_of(cues, b, False)[-most:])


@given(DECODER_PROMPTS, st.booleans(), HEADS, st.integers(1, 20), SEEDS)
def test_sampled_rows_of_a_causal_attention_are_evenly_spaced(prompts, left, heads, most, seed):
    cues = prompt_cues(prompts, seed, left, causal=True, heads=heads)
    found, there = cues.sampled_rows(most)
    for b, prompt in enumerate(prompts):
        n, real = len(prompt), cues.tokens.mask[b].nonzero()[:, 0].tolist()
        check_rows(cues, b, found[b], there[b], [real[i * n // min(n, most)] for i in range(min(n, most))])


def test_of_a_long_text_few_ask():
    prompts = [[(1, False)] * 5 + [(0, False)] * (module.ASKING + 6), [(0, False)] * 2 + [(1, False)] + [(0, False)]]
    found, there = prompt_cues(prompts, 0, True, causal=True, heads=4).asking_rows()
    assert found.shape == (2, 4, module.ASKING, 5)
    assert there.sum(dim=1).tolist() == [module.ASKING, 3]


@pytest.mark.parametrize("left", [False, True])
def test_what_comes_later_or_is_padding_changes_no_row(left):
    """Whatever its keys are."""
    prompts = [[(0, False), (1, False), (1, False), (0, False), (2, False), (0, False)], [(1, False), (0, False)]]
    cues = prompt_cues(prompts, 3, left, causal=True, heads=4)
    rows, last = cues.text_rows(), cues.last_row()
    third = slots_of(cues, 0, False)[1]
    hidden = ~cues.tokens.mask
    hidden[0, third + 1 :] = True
    cues.key.masked_fill_(hidden[:, None, :, None], 50.0)
    again = cues.text_rows()
    assert torch.equal(again[0, :, :2], rows[0, :, :2]) and torch.equal(again[1], rows[1])
    assert not torch.equal(again[0, :, 2], rows[0, :, 2]) and not torch.equal(cues.last_row()[0], last[0])
