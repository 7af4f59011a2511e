"""Prompts that are shortened before the decoder: their plan against a run, and what a benchmark measures of them."""

from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console
from shortening.families import each_of, together
from tiny.decoders import DECODERS

import pumer
from pumer import DivPruneConfig, FastVConfig, InputError, NoReduction, plan_prompt
from pumer.backbones.shortening import shorten_prompts
from pumer.profiling import benchmark, generation, generation_benchmark, generation_memory
from pumer.profiling.generation import CHOOSING, STAGES, Decoding, time_stages
from pumer.profiling.generation_memory import PromptJob
from pumer.profiling.macs import MacCounter
from pumer.profiling.named_models import variant
from pumer.profiling.planning import run
from pumer.profiling.prompt_planning import decoder_of
from pumer.profiling.prompts import images_of, prompt_for
from pumer.reducers import config_to_dict, reduction_from
from pumer.settings.benchmark import BenchmarkConfig
from pumer.settings.plan import PlanConfig

ALONE = DivPruneConfig(prune_ratio=0.7)
BOTH = replace(FastVConfig(layers=(1,), prune_ratio=0.5), before=ALONE)
RATIOS = ("divprune", "cdpruner", "visionzip", "vispruner", "simignore", "random-prompt")
RAGGED = {"prumerge": {}, "evs": {"prune_ratio": 0.5}, "pooling-prompt": {}}
TOKENS = {"llava": 32, "qwen2_5_vl": 15, "qwen3_vl": 12, "smolvlm": 8}
"""Image tokens of a prompt: of LLaVA two images, of SmolVLM two tiles."""

configs = pytest.mark.parametrize("config", [ALONE, pytest.param(BOTH, marks=together)], ids=["alone", "both"])


def cache_of(model, inputs):
    with torch.no_grad():
        return model(**inputs, use_cache=True).past_key_values


@each_of(*TOKENS)
@configs
def test_what_is_planned_is_what_a_run_leaves(config, family):
    model = pumer.patch(DECODERS[family].model(), config)
    inputs = prompt_for(model, 9, TOKENS[family])
    planned, cache = plan_prompt(model, 9, images_of(model, inputs)), cache_of(model, inputs)
    assert (planned.text_tokens, planned.image_tokens) == (9, TOKENS[family])
    assert [row.text_tokens + row.image_tokens for row in planned.layers] == [x.keys.shape[2] for x in cache.layers]
    assert planned.layers[0].image_tokens < TOKENS[family] / 2
    assert planned.cache_bytes == sum(2 * x.keys.numel() * x.keys.element_size() for x in cache.layers)
    assert {row.image_tokens for row in planned.unreduced} == {TOKENS[family]}


@each_of(*TOKENS)
def test_planned_macs_are_those_of_the_stock_model_on_a_shorter_prompt(family):
    model, stock = pumer.patch(DECODERS[family].model(), ALONE), DECODERS[family].model()
    inputs = prompt_for(stock, 9, TOKENS[family])
    short = shorten_prompts(stock.model, inputs, ALONE)
    counter, rotary = MacCounter(), decoder_of(stock)[1].rotary_emb  # which multiplies positions with frequencies
    rotary.register_forward_pre_hook(lambda *_: setattr(counter, "section", "rotary"))
    rotary.register_forward_hook(lambda *_: setattr(counter, "section", ""))
    with torch.no_grad(), counter:
        stock(**short.inputs, logits_to_keep=1)
    planned = plan_prompt(model, 9, images_of(model, inputs))
    assert planned.macs == counter.macs[""]
    assert planned.ideal_speedup > 1


@pytest.mark.parametrize("method", RATIOS)
def test_every_method_that_is_given_a_ratio_has_a_plan(method):
    model = pumer.patch(DECODERS["llava"].model(), reduction_from({"method": method, "prune_ratio": 0.7}))
    inputs = prompt_for(model, 9, 48)
    assert images_of(model, inputs) == [16] * 3
    planned = plan_prompt(model, 9, [16] * 3)
    assert {row.image_tokens for row in planned.layers} == {cache_of(model, inputs).get_seq_length() - 9} == {3 * 5}


def test_each_image_is_rounded_by_itself():
    model = pumer.patch(DECODERS["llava"].model(), DivPruneConfig(prune_ratio=0.5))
    assert plan_prompt(model, 9, [3, 3]).layers[0].image_tokens == 2 * 1
    assert plan_prompt(model, 9, 6).layers[0].image_tokens == 3


@pytest.mark.parametrize("method", RAGGED)
def test_methods_whose_numbers_depend_on_images_are_refused_by_name(method):
    config = reduction_from({"method": method, **RAGGED[method]})
    for each in (config, replace(BOTH, before=config)):
        with pytest.raises(InputError, match=f"'{method}'"):
            plan_prompt(pumer.patch(DECODERS["llava"].model(), each), 9, 32)


def test_no_image():
    with pytest.raises(InputError, match="image_tokens is 0"):
        plan_prompt(DECODERS["llava"].model(), 9, [])


def test_a_plan_by_name():
    before = {"method": "cdpruner", "prune_ratio": 0.75}
    reduction = {"method": "fastv", "layers": [1], "prune_ratio": 0.5, "before": before}
    planned = run(PlanConfig(model="preset:llava-0.1b", reduction=reduction))
    assert [row.image_tokens for row in planned.layers] == [144] * 2 + [72] * 10
    assert "144 image tokens enter" in str(planned)
    assert "enter" not in str(run(PlanConfig(model="preset:llava-0.1b", reduction=reduction | {"before": None})))


# ---------------------------------------------------------------- what is measured


def variants(model, **others):
    return {name: variant(model, each) for name, each in {"own": None, "none": NoReduction(), **others}.items()}


@together
@each_of(*TOKENS)
def test_what_is_timed_computes_what_the_model_does(family, monkeypatch):
    """Of two prompts; the three prefills give the same logits."""
    models = variants(DECODERS[family].model(), alone=ALONE, both=BOTH)
    inputs, ran = prompt_for(models["own"], 9, TOKENS[family], 2), []

    def timed(models, makers, batches, pairs, seconds, tick):
        with torch.inference_mode():
            ran.append({name: model(**makers[name](*batches)) for name, model in models.items()})
        timing = {"seconds": dict.fromkeys(("median", "low", "high"), 6.0), "speedup": {"median": 1.0}}
        return {"points": [{"models": dict.fromkeys(models, timing)}]}

    monkeypatch.setattr(generation, "compare", timed)
    found = time_stages(models, inputs, new_tokens=3, pairs=2)
    for name, model in models.items():
        first, encoded, decoder, _ = (outputs[name] for outputs in ran)
        with torch.inference_mode():
            expected = model(**inputs).logits[:, -1:]
            for logits in (first.logits, encoded.logits, model.lm_head(decoder.last_hidden_state[:, -1:])):
                torch.testing.assert_close(logits, expected)
        planned = plan_prompt(model, 9, images_of(model, prompt_for(model, 9, TOKENS[family])))
        assert found["cache_bytes"][name] == 2 * planned.cache_bytes
        entered = decoder.last_hidden_state.shape[1]
        assert entered == 9 + planned.layers[0].image_tokens
    assert list(found[CHOOSING]) == ["alone", "both"]
    assert all(each["seconds"]["median"] > 0 for each in found[CHOOSING].values())


@pytest.mark.parametrize("config", [ALONE, pytest.param(BOTH, marks=together)], ids=["alone", "both"])
def test_generated_tokens_are_those_of_generate(config):
    model = pumer.patch(DECODERS["llava"].model(), config)
    inputs = prompt_for(model, 9, 16, 2)
    expected = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, -5:]
    with torch.inference_mode():
        decoding, said = Decoding(model, inputs, 4), []
        model.register_forward_pre_hook(lambda _, args, kwargs: said.append(kwargs), with_kwargs=True)
        for _ in range(2):  # anew from the same cache
            said.clear()
            decoding()
            assert torch.equal(torch.cat([call["input_ids"] for call in said], dim=1), expected[:, :4])


def test_choosing_is_timed_without_the_encoder(monkeypatch):
    """By a clock that each choice moves by one second, and the encoder by a hundred."""
    now = [0.0]
    monkeypatch.setattr(generation.time, "perf_counter", lambda: now[0])
    model = pumer.patch(DECODERS["llava"].model(), ALONE)
    choose = DivPruneConfig.choose

    def passes(seconds):
        now[0] += seconds

    monkeypatch.setattr(DivPruneConfig, "choose", lambda self, image: (passes(1.0), choose(self, image))[1])
    model.model.vision_tower.register_forward_hook(lambda *_: passes(100.0))
    found = generation._choosing(model, prompt_for(model, 9, 32, 2), 3)
    assert found == {"seconds": {"median": 4.0, "low": 4.0, "high": 4.0}}  # two prompts of two images


@together
def test_a_benchmark_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(generation_benchmark, "peak_memory", generation_memory.measure)
    pumer.save(DECODERS["llava"].model(), tmp_path / "model")
    rows = {"alone": config_to_dict(ALONE), "both": config_to_dict(BOTH), "ragged": {"method": "prumerge"}}
    config = BenchmarkConfig(
        model=str(tmp_path / "model"),
        reductions=rows,
        text_tokens=9,
        image_tokens=32,
        new_tokens=2,
        batch_sizes=(2,),
        pairs=2,
        memory_batch=2,
        device="cpu",
        progress=False,
    )
    shown = StringIO()
    result = benchmark.run(config, Console(file=shown, width=80))
    (point,) = result["points"]
    assert list(point[CHOOSING]) == list(rows)
    assert "'prumerge'" in result["plan"]["ragged"]["failed"]
    assert result["plan"]["alone"]["tokens"] == [(9, 10)] * 6
    assert result["plan"]["both"]["tokens"] == [(9, 10)] * 2 + [(9, 5)] * 4
    for name in ("alone", "both"):
        assert point["cache_bytes"][name] == 2 * result["plan"][name]["cache_bytes"]
    assert 0 < point["cache_bytes"]["ragged"] < point["cache_bytes"]["unreduced"]
    assert all(list(point[stage]) == ["transformers", "unreduced", *rows] for stage in STAGES)
    assert any(line.strip() == "choosing image tokens" for line in shown.getvalue().splitlines())
    assert "…" not in shown.getvalue()  # fits 80 columns


@pytest.mark.slow
def test_memory_of_an_answer():
    """The encoder and the choice are a part of what is measured; the prompt is that of the whole image."""
    model = DECODERS["llava"].model()
    job = PromptJob("unused", config_to_dict(ALONE), 2, 9, 32, 2)
    assert set(generation_memory.measure(job, model)) == {"weights", "activations"}
    assert pumer.reduction(model) is None
