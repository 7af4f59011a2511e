"""A prompt's plan against the closed formula, and against a run on numbers of every family and method."""

import json

import pytest
import torch
from tiny.decoder_examples import DECODER_EXAMPLES
from tiny.decoders import DECODERS

import pumer
from pumer import NoReduction, PuMerConfig, RandomPruningConfig, Step, plan_prompt
from pumer.profiling.generative_presets import CONFIGS
from pumer.profiling.named_models import generates, skeleton
from pumer.profiling.planning import run
from pumer.profiling.prompts import prompt_for
from pumer.settings.plan import PlanConfig
from pumer.utils.errors import InputError

D, FEED_FORWARD, HEADS, KEY_HEADS, DH, VOCABULARY, DEPTH = 32, 64, 4, 2, 8, 200, 6  # of tests/tiny/decoders.py
HALF = RandomPruningConfig(stack="decoder", layers=(1, 3), prune_ratio=0.5)
PUMER = PuMerConfig(
    schedule=(
        Step(stack="decoder", layer=0, prune_ratio=0.3, merge_ratio=0.2),
        Step(stack="decoder", layer=3, prune_ratio=0.2, merge_ratio=0.4),
    )
)
MADE = {"llava": 32, "qwen2_5_vl": 15, "qwen3_vl": 12, "smolvlm": 8}
"""Image tokens of a prompt that can be made, by family."""


def linear(tokens):
    """Queries and output, keys and values of fewer heads, and the three products of a gated feed-forward part."""
    return tokens * (2 * D * HEADS * DH + 2 * D * KEY_HEADS * DH + 3 * D * FEED_FORWARD)


def attention(tokens):
    """Every query head with every key, and with every value."""
    return 2 * tokens * tokens * HEADS * DH


def test_the_closed_formula():
    T, V = 7, 40
    planned = plan_prompt(pumer.patch(DECODERS["llava"].model(), HALF), T, V)
    image = [40, 40, 20, 20, 10, 10]
    assert [(row.text_tokens, row.image_tokens) for row in planned.layers] == [(T, n) for n in image]
    assert [row.linear_macs for row in planned.layers] == [linear(T + n) for n in image]
    assert [row.attention_macs for row in planned.layers] == [attention(T + n) for n in image]
    assert [row.cache_bytes for row in planned.layers] == [(T + n) * 2 * KEY_HEADS * DH * 4 for n in image]
    assert [row.macs for row in planned.unreduced] == [linear(T + V) + attention(T + V)] * DEPTH
    assert planned.head_macs == D * VOCABULARY
    assert planned.macs == sum(row.macs for row in planned.layers) + D * VOCABULARY
    assert planned.ideal_speedup == planned.macs_unreduced / planned.macs > 1
    assert planned.cache_bytes_unreduced == DEPTH * (T + V) * 2 * KEY_HEADS * DH * 4


def test_only_layers_that_reduce_pay_for_it():
    planned = plan_prompt(pumer.patch(DECODERS["llava"].model(), PUMER), 7, 40)
    assert [row.reduction_macs > 0 for row in planned.layers] == [True, False, False, True, False, False]
    assert {row.reduction_macs for row in planned.unreduced} == {0}


def test_the_number_format_of_the_cache():
    model = DECODERS["qwen2_5_vl"].model()
    whole, half = plan_prompt(model, 7, 40), plan_prompt(model, 7, 40, dtype="bfloat16")
    assert (whole.dtype, half.dtype) == ("float32", "bfloat16")
    assert whole.cache_bytes == 2 * half.cache_bytes
    assert whole.macs == half.macs == whole.macs_unreduced
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("name", DECODERS)
def test_every_family(name):
    planned = plan_prompt(pumer.patch(DECODERS[name].model(), PUMER), 7, 40)
    assert len(planned.layers) == DEPTH
    assert {row.macs for row in planned.unreduced} == {linear(47) + attention(47)}
    assert [row.linear_macs for row in planned.layers] == [linear(7 + row.image_tokens) for row in planned.layers]
    assert planned.layers[-1].image_tokens < 30


@pytest.mark.parametrize("method", DECODER_EXAMPLES)
def test_every_method_leaves_what_a_run_leaves(method):
    """The lengths of the cache after a prompt, or a refusal where they depend on the prompt."""
    model = pumer.patch(DECODERS["llava"].model(), DECODER_EXAMPLES[method][0])
    inputs = prompt_for(model, 9, 32)
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    try:
        planned = plan_prompt(model, 9, 32)
    except InputError as error:
        assert f"method '{method}'" in str(error)
        return
    assert [row.text_tokens + row.image_tokens for row in planned.layers] == [x.keys.shape[2] for x in cache.layers]
    assert planned.cache_bytes == sum(2 * x.keys.numel() * x.keys.element_size() for x in cache.layers)


def test_the_model_is_left_alone():
    model = pumer.patch(DECODERS["llava"].model(), HALF).train()
    before = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    plan_prompt(model, 7, 40)
    assert pumer.reduction(model) == HALF
    assert model.training
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is before[name][0]
        assert torch.equal(tensor, before[name][1])


def test_the_table():
    lines = str(plan_prompt(pumer.patch(DECODERS["llava"].model(), HALF), 7, 40)).splitlines()
    assert lines[0].startswith("7 text and 40 image tokens")
    assert lines[1].startswith("cache in float32")
    assert len(lines) == 5 + DEPTH + 1


def test_models_and_sizes_that_have_no_plan():
    model = DECODERS["llava"].model()
    with pytest.raises(InputError, match="text_tokens is 0"):
        plan_prompt(model, 0, 40)
    with pytest.raises(InputError, match="image_tokens is True"):
        plan_prompt(model, 7, True)
    with pytest.raises(InputError, match="cannot be patched"):
        plan_prompt(torch.nn.Linear(2, 2), 7, 40)
    with pytest.raises(InputError, match="plan_prompt"):
        pumer.plan(model)
    with torch.device("meta"):
        answering = skeleton("preset:vilt-b32")
    with pytest.raises(InputError, match="does not generate"):
        plan_prompt(answering, 7, 40)


# ---------------------------------------------------------------- by name


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llava-0.1b", 0.11), ("llava-1.5-7b", 7.06), ("qwen2.5-vl-3b", 3.75), ("smolvlm-2.2b", 2.25)],
)
def test_presets_are_as_large_as_the_published_models(name, billions):
    with torch.device("meta"):
        model = skeleton(f"preset:{name}")
    assert sum(x.numel() for x in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.01)


def test_every_preset_has_a_plan():
    assert all(generates(f"preset:{name}") for name in CONFIGS)
    assert not generates("preset:vilt-b32")
    planned = run(
        PlanConfig(
            model="preset:llava-1.5-7b",
            reduction={"method": "fastv", "layers": [1], "prune_ratio": 0.5},
            dtype="bfloat16",
        )
    )
    assert planned.cache_bytes_unreduced == 640 * 2**19  # half a MiB for each token
    assert planned.layers[2].image_tokens == 288
    # its published formula, with the gated feed-forward part
    layer = [n * (4 * 4096**2 + 3 * 4096 * 11008) + 2 * n**2 * 4096 for n in (640, 352)]
    assert planned.layers[0].macs == layer[0]
    assert planned.layers[2].macs == layer[1]


def test_a_folder(tmp_path):
    pumer.save(pumer.patch(DECODERS["llava"].model(), HALF), tmp_path / "model")
    planned = run(PlanConfig(model=str(tmp_path / "model"), text_tokens=7, image_tokens=40))
    assert [row.image_tokens for row in planned.layers] == [40, 40, 20, 20, 10, 10]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["model_type"] == "llava"
    whole = run(PlanConfig(model=str(tmp_path / "model"), reduction="none"))
    assert whole.ideal_speedup == 1
    assert (whole.text_tokens, whole.image_tokens) == (64, 16)


@pytest.mark.parametrize(
    ("setting", "model"),
    [
        ({"text_length": 9}, "preset:llava-0.1b"),
        ({"image_size": 336}, "preset:llava-0.1b"),
        ({"text_tokens": 9}, "preset:vilt-b32"),
        ({"image_tokens": 9}, "preset:vilt-b32"),
        ({"dtype": "bfloat16"}, "preset:vilt-b32"),
    ],
)
def test_settings_of_another_kind_of_model(setting, model):
    ((name, value),) = setting.items()
    with pytest.raises(InputError, match=f"{name}={value}"):
        run(PlanConfig(model=model, **setting))


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize("name", MADE)
def test_prompts_have_as_many_tokens_as_asked_for(name):
    model = DECODERS[name].model()
    inputs = prompt_for(model, 9, MADE[name], batch=2)
    image = inputs["input_ids"] == model.config.image_token_id
    assert image.sum(dim=1).tolist() == [MADE[name]] * 2
    assert (~image).sum(dim=1).tolist() == [9] * 2
    with torch.no_grad():
        assert model(**inputs).logits.shape == (2, 9 + MADE[name], VOCABULARY)  # which compares both numbers itself
    again = prompt_for(model, 9, MADE[name], batch=2)
    assert all(torch.equal(x, again[key]) for key, x in inputs.items())


def test_prompts_that_cannot_be_made():
    with pytest.raises(InputError, match=r"image_tokens is 17, but an image or tile of this model has 16"):
        prompt_for(DECODERS["llava"].model(), 9, 17)
    with pytest.raises(InputError, match="mistral3"):
        prompt_for(DECODERS["mistral3"].model(), 9, 16)


def test_no_reduction_is_transformers_own_arithmetic():
    plain, patched = DECODERS["llava"].model(), pumer.patch(DECODERS["llava"].model(), NoReduction())
    assert plan_prompt(plain, 7, 40) == plan_prompt(patched, 7, 40)
