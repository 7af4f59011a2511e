"""Caches and layers that others move about: a cache repeated for several continuations or reset, layers with hooks."""

import copy

import accelerate
import pytest
import torch
from tiny.decoders import DECODERS, Sample, text
from transformers import DynamicCache

import pumer
from pumer import PuMerConfig, Step

CONFIG = PuMerConfig(
    schedule=(
        Step(stack="decoder", layer=1, prune_ratio=0.3, merge_ratio=0.2),
        Step(stack="decoder", layer=3, prune_ratio=0.3),
    )
)


def logits(model, inputs):
    settings = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    return torch.stack(model.generate(**inputs, **settings).logits)


@torch.no_grad()
def test_a_cache_repeated_for_several_continuations_gives_each_its_own():
    tiny = DECODERS["llava"]
    model = pumer.patch(tiny.model().double(), CONFIG)
    samples = [tiny.sample(1), Sample(text(9, 3), ())]  # the second one is padded, so that masks are needed
    inputs, cache = tiny.batch(samples, padding="left", dtype=torch.float64), DynamicCache()
    model(**inputs, past_key_values=cache, use_cache=True)
    mask = inputs["attention_mask"]
    words = torch.tensor([text(3, seed) for seed in range(4)])

    def go_on(cache, words, mask):
        mask = torch.cat([mask, torch.ones_like(words)], dim=1)
        return model(input_ids=words, attention_mask=mask, past_key_values=cache, use_cache=True).logits

    several = copy.deepcopy(cache)
    several.batch_repeat_interleave(2)
    together = go_on(several, words, mask.repeat_interleave(2, dim=0))
    for start in (0, 1):
        apart = go_on(copy.deepcopy(cache), words[start::2], mask)
        torch.testing.assert_close(together[start::2], apart, atol=1e-9, rtol=0)


@torch.no_grad()
def test_a_cache_that_is_reset_starts_anew():
    tiny = DECODERS["llava"]
    model = pumer.patch(tiny.model().double(), CONFIG)
    cache, inputs = DynamicCache(), tiny.batch([tiny.sample(1), Sample(text(9, 3), ())], "left", torch.float64)
    for length in (5, 1):
        model(**inputs, past_key_values=cache, use_cache=True)
        cache.reset()
        words = torch.tensor([text(length, 1), text(length, 2)])
        again = model(input_ids=words, past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(again, model(input_ids=words).logits, atol=1e-9, rtol=0)
        cache.reset()


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
@torch.no_grad()
def test_layers_that_are_offloaded_by_hooks_give_the_same(family):
    tiny = DECODERS[family]
    model = tiny.model()
    inputs = tiny.batch([tiny.sample(1), tiny.sample(2)], padding="left", dtype=torch.float32)
    stock = logits(model, inputs)
    reduced = logits(pumer.patch(model, CONFIG), inputs)
    assert (reduced - stock).abs().max() > 0.1
    pumer.unpatch(model)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)
    assert torch.equal(logits(pumer.patch(model, CONFIG), inputs), reduced)
    assert torch.equal(logits(pumer.unpatch(model), inputs), stock)


@torch.no_grad()
def test_tokens_and_decisions_move_to_another_device():
    """The meta device stands for a second one."""
    tiny = DECODERS["llava"]
    model, inputs = tiny.model(), tiny.batch([tiny.sample(1)], padding="left", dtype=torch.float32)
    seen = []
    pumer.patch(model, CONFIG)
    state = model.model.pumer_reduction
    decide = type(state).decide
    state.decide = lambda reducer, cues: seen.append((cues.tokens, decide(state, reducer, cues))) or seen[-1][1]
    model(**inputs)
    tokens, decision = seen[1]
    there, moved = tokens.to(torch.device("meta")), decision.to(torch.device("meta"))
    reduced = there.reduce(moved)
    assert reduced.states.device.type == reduced.source.device.type == reduced.segments.segment.device.type == "meta"
    assert reduced.states.shape == tokens.reduce(decision).states.shape
    assert tokens.to(tokens.size.device) is tokens and decision.to(decision.lengths.device) is decision
