"""Attention functions of transformers: eager, fused, and FlashAttention by what it is called with."""

import pytest
import torch
from tiny.decoders import DECODERS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import pumer
from pumer import PuMerConfig, Step

CONFIG = PuMerConfig(
    schedule=(
        Step(stack="decoder", layer=1, prune_ratio=0.3, merge_ratio=0.2),
        Step(stack="decoder", layer=3, prune_ratio=0.3),
    )
)


def flash(module, query, key, value, attention_mask, dropout=0.0, scaling=None, position_ids=None, **kwargs):
    """What FlashAttention computes: real columns come as two dimensions or none, the last query sees the last key.

    As transformers does, it takes positions with gaps, at batch 1, for several sequences in one row.
    """
    assert attention_mask is None or attention_mask.ndim == 2, attention_mask.shape
    queries, keys = query.shape[2], key.shape[2]
    see = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    if attention_mask is not None:
        assert attention_mask.shape == (len(query), keys)
        see = see & (attention_mask[:, None, None] > 0)
    if len(query) == 1 and position_ids is not None and queries > 1:
        step = position_ids.reshape(-1, position_ids.shape[-1])[-1].diff()
        assert (step == 1).all(), "packed sequences"
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    see = torch.where(see.any(dim=-1, keepdim=True), see, True)  # padding sees anything, and is seen by nobody
    states = torch.nn.functional.scaled_dot_product_attention(query, key, value, see, scale=scaling)
    return states.transpose(1, 2), None


def generated(model, inputs):
    settings = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    return torch.stack(model.generate(**inputs, **settings).logits)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("batch", [1, 2])
def test_every_attention_function_gives_the_same(family, batch, monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", flash)
    tiny = DECODERS[family]
    model = tiny.model()
    samples = [tiny.sample(1, before=3), tiny.sample(2, before=6, after=9)][:batch]
    inputs = tiny.batch(samples, padding="left", dtype=torch.float32)
    pumer.patch(model, CONFIG)
    answers = {}
    for name in ("sdpa", "eager", "flash_attention_2"):
        text = model.model.language_model.config
        monkeypatch.setattr(text, "_attn_implementation_internal", name)
        answers[name] = generated(model, inputs)
    torch.testing.assert_close(answers["eager"], answers["sdpa"], atol=1e-4, rtol=0)
    torch.testing.assert_close(answers["flash_attention_2"], answers["sdpa"], atol=1e-4, rtol=0)


def test_an_attention_function_chosen_after_patching_is_used():
    tiny = DECODERS["llava"]
    model = pumer.patch(tiny.model(), CONFIG)
    inputs = tiny.batch([tiny.sample(1)], padding="left", dtype=torch.float32)
    before = generated(model, inputs)
    model.set_attn_implementation("eager")
    assert model.model.language_model.layers[1].self_attn.config._attn_implementation == "pumer"
    torch.testing.assert_close(generated(model, inputs), before, atol=1e-4, rtol=0)
    outputs = model(**inputs, output_attentions=True)
    lengths = [attention.shape[-1] for attention in outputs.attentions]
    assert lengths == sorted(lengths, reverse=True) and lengths[-1] < lengths[0]
