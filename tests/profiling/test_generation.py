"""What is timed of a generative model's answer, and a benchmark of a tiny one from end to end; no time is asserted."""

import json
from io import StringIO

import pytest
import torch
from rich.console import Console
from tiny.decoders import DECODERS

import pumer
from pumer import NoReduction, RandomPruningConfig, plan_prompt
from pumer.profiling import benchmark, generation, generation_benchmark, generation_memory
from pumer.profiling.generation import DECODE, STAGES, Decoding, time_stages
from pumer.profiling.generation_memory import PromptJob
from pumer.profiling.named_models import variant
from pumer.profiling.peak_memory import bytes_of
from pumer.profiling.prompts import prompt_for, prompt_size
from pumer.reducers import config_to_dict
from pumer.reducers.interaction import InteractionConfig
from pumer.settings.benchmark import BenchmarkConfig
from pumer.utils.errors import InputError

HALF = RandomPruningConfig(stack="decoder", layers=(1, 3), prune_ratio=0.5)
FAMILIES = {"llava": 16, "qwen2_vl": 12, "qwen2_5_vl": 12, "qwen3_vl": 12, "glm4v": 12, "smolvlm": 8, "idefics3": 8}


def test_a_prompt_has_the_tokens_of_one_image_where_each_has_as_many():
    llava, qwen = (DECODERS[family].model().config for family in ("llava", "qwen2_5_vl"))
    assert prompt_size(llava, None, None) == (64, FAMILIES["llava"])
    assert prompt_size(qwen, None, None) == (64, 576)
    assert prompt_size(llava, 7, 32) == (7, 32)


"""Those for which prompts can be made, with image tokens of a prompt."""


@pytest.fixture
def folder(tmp_path):
    pumer.save(pumer.patch(DECODERS["llava"].model(), HALF), tmp_path / "model")
    return str(tmp_path / "model")


def variants(model):
    return {name: variant(model, config) for name, config in {"own": None, "none": NoReduction(), "half": HALF}.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_timed_computes_what_the_model_does(name, monkeypatch):
    """The three prefills give the same states; each stage is run by every model on the batch it is given."""
    models = variants(DECODERS[name].model())
    inputs, ran = prompt_for(models["own"], 9, FAMILIES[name], 2), []

    def timed(models, makers, batches, pairs, seconds, tick):
        with torch.inference_mode():
            outputs = {name: model(**makers[name](*batches)) for name, model in models.items()}
        ran.append((outputs, batches, pairs, seconds))
        timing = {"seconds": dict.fromkeys(("median", "low", "high"), 6.0), "speedup": {"median": 1.0}}
        return {"points": [{"models": dict.fromkeys(models, timing)}]}

    monkeypatch.setattr(generation, "compare", timed)
    found = time_stages(models, inputs, new_tokens=3, pairs=5, seconds=0.5)
    assert [(list(outputs), *rest) for outputs, *rest in ran] == [(list(models), [2], 5, 0.5)] * len(STAGES)
    for each, model in models.items():
        first, encoded, decoder, _ = (outputs[each] for outputs, *_ in ran)
        with torch.inference_mode():
            expected = model(**inputs).logits[:, -1:]
            for logits in (first.logits, encoded.logits, model.lm_head(decoder.last_hidden_state[:, -1:])):
                torch.testing.assert_close(logits, expected)
    assert found["cache_bytes"]["own"] == found["cache_bytes"]["none"] > found["cache_bytes"]["half"]
    for each, model in models.items():
        planned = plan_prompt(model, 9, FAMILIES[name])
        assert found["cache_bytes"][each] == 2 * planned.cache_bytes  # of two prompts
    assert found[DECODE]["half"]["seconds"]["median"] == 6.0 / 3
    assert found["first_token"]["half"]["seconds"]["median"] == 6.0


@pytest.mark.parametrize("name", ["own", "half"])
def test_generated_tokens_are_those_of_generate(name, monkeypatch):
    model = variants(DECODERS["llava"].model())[name]
    inputs = prompt_for(model, 9, 16, 2)
    expected = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, -5:]
    with torch.inference_mode():
        decoding, said = Decoding(model, inputs, 4), []
        hook = model.register_forward_pre_hook(lambda _, args, kwargs: said.append(kwargs), with_kwargs=True)
        for _ in range(2):  # anew from the same cache
            said.clear()
            decoding()
            assert torch.equal(torch.cat([call["input_ids"] for call in said], dim=1), expected[:, :4])
            assert [layer.keys.shape[2] for layer in decoding.cache.layers] == decoding.lengths
        hook.remove()


@pytest.mark.slow
def test_a_benchmark_from_end_to_end(folder, tmp_path, monkeypatch):
    jobs = []

    def measured(job, base):
        jobs.append(job)
        return {"weights": 2**20, "activations": 2**21}

    monkeypatch.setattr(generation_benchmark, "peak_memory", measured)
    out, shown = tmp_path / "result.json", StringIO()
    config = BenchmarkConfig(
        model=folder,
        text_tokens=9,
        image_tokens=32,
        new_tokens=2,
        batch_sizes=(1, 2),
        pairs=2,
        memory_batch=3,
        output=out,
        device="cpu",
        progress=False,
    )
    result = benchmark.run(config, Console(file=shown, width=80))
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    names = ["transformers", "unreduced", "reduced"]
    assert list(result["plan"]) == names
    assert result["plan"]["reduced"]["tokens"] == [(9, n) for n in (32, 32, 16, 16, 8, 8)]
    assert [point["batch"] for point in result["points"]] == [1, 2]
    for point in result["points"]:
        for stage in STAGES:
            assert list(point[stage]) == names
            assert point[stage]["transformers"]["speedup"]["median"] == 1
            assert set(point[stage]["reduced"]["seconds"]) == {"median", "low", "high"}
        planned = {name: plan["cache_bytes"] * point["batch"] for name, plan in result["plan"].items()}
        assert point["cache_bytes"] == planned
    assert [(job.reduction and job.reduction["method"], job.batch, job.new_tokens) for job in jobs] == [
        (None, 3, 2),
        ("none", 3, 2),
        ("random", 3, 2),
    ]
    assert {"command", "versions", "commit", "config", "threads", "device"} <= set(result["provenance"])
    text = shown.getvalue()
    assert all(name in text for name in names)
    assert "peak memory of 3 answers" in text
    speedup = result["points"][1]["decoder"]["reduced"]["speedup"]
    assert f"{speedup['low']:.2f}-{speedup['high']:.2f}" in text
    assert "…" not in text  # fits 80 columns


def test_a_method_without_a_plan_is_measured(folder):
    method = config_to_dict(InteractionConfig(layers=(0, 2), prune_ratio=0.5, midpoint=1))
    config = BenchmarkConfig(
        model=folder,
        reductions={"by chance": method},
        text_tokens=9,
        image_tokens=32,
        new_tokens=1,
        batch_sizes=(1,),
        pairs=1,
        memory_batch=0,
        device="cpu",
        progress=False,
    )
    result = benchmark.run(config, Console(quiet=True))
    assert "interaction" in result["plan"]["by chance"]["failed"]
    assert result["points"][0]["cache_bytes"]["by chance"] > 0
    assert "memory" not in result


@pytest.mark.parametrize(
    "setting", [{"compile": True}, {"search": True}, {"image_size": 32}, {"text_length": 9}, {"image_tokens": 17}]
)
def test_settings_that_do_not_fit(folder, setting):
    ((name, value),) = setting.items()
    with pytest.raises(InputError, match=rf"{name}( is |=){str(value).lower()}"):
        benchmark.run(BenchmarkConfig(model=folder, device="cpu", progress=False, **setting))


def test_nothing_to_compare(tmp_path):
    pumer.save(DECODERS["llava"].model(), tmp_path / "plain")
    config = BenchmarkConfig(model=str(tmp_path / "plain"), transformers=False, device="cpu", progress=False)
    with pytest.raises(InputError, match="nothing to compare"):
        benchmark.run(config)


def test_too_large_a_batch_shows_before_anything_is_timed(folder, monkeypatch):
    def killed(job, base):
        raise RuntimeError("measuring memory failed: exit code -9")

    monkeypatch.setattr(generation_benchmark, "peak_memory", killed)
    monkeypatch.setattr(generation_benchmark, "time_stages", lambda *args: pytest.fail("it was timed"))
    with pytest.raises(InputError, match=r"exit code -9 \(transformers, memory_batch=8\); lower memory_batch"):
        benchmark.run(BenchmarkConfig(model=folder, image_tokens=32, device="cpu", progress=False))


def test_peak_memory_of_an_answer(folder):
    """In a process of its own: the prompt's cache is a part of it."""
    job = PromptJob(folder, None, 64, 9, 64, 2, threads=1)
    model = DECODERS["llava"].model()
    peak = generation_memory.peak_memory(job, model)
    assert peak["weights"] == bytes_of(model)
    assert peak["activations"] > 64 * plan_prompt(model, 9, 64).cache_bytes


def test_random_weights_are_made_in_their_number_format(monkeypatch):
    before = torch.get_default_dtype()

    def build(name):
        weight = torch.empty(2)
        model = torch.nn.Linear(2, 2)
        assert (weight.dtype, weight.device.type) == (torch.bfloat16, "meta")
        return model

    monkeypatch.setattr(generation_memory, "model_from", build)
    model = generation_memory.base_model("preset:llava-0.1b", "meta", "bfloat16")
    assert (model.weight.dtype, model.weight.device.type) == (torch.bfloat16, "meta")
    assert torch.get_default_dtype() == before


@pytest.mark.gpu
def test_on_a_gpu(folder):
    config = BenchmarkConfig(
        model=folder, image_tokens=32, batch_sizes=(2,), pairs=2, dtype="bfloat16", device="cuda", memory_batch=2
    )
    result = benchmark.run(config, Console(quiet=True))
    assert result["memory"]["transformers"]["activations"] > result["memory"]["reduced"]["activations"] > 0
