"""Timing by scripted clocks, and a benchmark of a tiny model from end to end. No assertion about real time."""

import json
from io import StringIO

import pytest
import torch
from rich.console import Console
from transformers import ViltConfig, ViltForQuestionAnswering

import pumer
from pumer import NoReduction, PuMerConfig
from pumer.profiling import benchmark, named_models, peak_memory, timing
from pumer.profiling.benchmark import times
from pumer.profiling.inputs import inputs_for
from pumer.profiling.peak_memory import Job
from pumer.profiling.planning import run as run_plan
from pumer.profiling.timing import time_split
from pumer.settings.benchmark import BenchmarkConfig
from pumer.settings.plan import PlanConfig
from pumer.utils.errors import InputError

REDUCTION = PuMerConfig(layers=(1,), prune_ratio=0.1, merge_ratio=0.3, text_merge_ratio=0.2)


def tiny():
    config = ViltConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=5,
        max_position_embeddings=12,
    )
    return ViltForQuestionAnswering(config).eval()


@pytest.fixture
def folder(tmp_path):
    pumer.save(pumer.patch(tiny(), REDUCTION), tmp_path / "model")
    return str(tmp_path / "model")


class Clock:
    """Stands in for `timing.timed`: every model has its own script of seconds."""

    def __init__(self, **scripts):
        self.scripts = {name: iter(script) for name, script in scripts.items()}
        self.order = []

    def __call__(self, model, inputs, repeats=1):
        self.order.append(model)
        return next(self.scripts[model])


def test_speedup_is_the_median_of_paired_ratios(monkeypatch):
    clock = Clock(whole=[9, 1, 2, 4, 8, 1], part=[9, 0.5, 2, 1, 1, 1])
    monkeypatch.setattr(timing, "timed", clock)
    result = timing.compare({"whole": "whole", "part": "part"}, lambda batch: {}, [4], pairs=5, warm_up=1)
    assert result["baseline"] == "whole"
    (point,) = result["points"]
    assert (point["batch"], point["pairs"]) == (4, 5)
    assert point["models"]["whole"]["speedup"] == {"median": 1, "low": 1, "high": 1}
    assert point["models"]["part"]["speedup"] == {"median": 2, "low": 1, "high": 4}  # of 2, 1, 4, 8, 1
    assert point["models"]["whole"]["images_per_second"] == 4 / 2
    assert point["models"]["part"]["seconds"]["median"] == 1


def test_rounds_are_interleaved_and_rotate(monkeypatch):
    clock = Clock(a=[1] * 9, b=[1] * 9, c=[1] * 9)
    monkeypatch.setattr(timing, "timed", clock)
    ticks = []
    three = {name: name for name in "abc"}
    timing.compare(three, lambda batch: {}, [1, 2], pairs=3, warm_up=1, tick=lambda: ticks.append(1))
    assert "".join(clock.order) == "abc" + "abcbcacab" + "abc" + "abcbcacab"
    assert len(ticks) == 6


def test_a_point_lasts_as_long_as_asked(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(timing, "timed", lambda *args: 1.0)
    result = timing.compare({"a": "a"}, lambda batch: {}, [1], pairs=1, seconds=7)
    assert result["points"][0]["pairs"] == 7


@pytest.mark.parametrize(
    ("rates", "best", "stopped"),
    [
        ({8: 10, 16: 15, 32: 14}, 16, "no gain"),
        ({8: 10, 16: 15, 32: 15.1}, 32, "no gain"),
        ({8: 10, 16: 15, 32: None}, 16, "out of memory"),
        ({8: 10, 16: 15, 32: 20, 64: 30}, 64, "largest batch"),
    ],
)
def test_search_for_the_fastest_batch(monkeypatch, rates, best, stopped):
    def throughput(model, inputs, batch, seconds):
        if rates[batch] is None:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return rates[batch]

    monkeypatch.setattr(timing, "_throughput", throughput)
    found = timing.fastest_batch(None, lambda batch: {}, start=8, most=64)
    assert (found["batch"], found["stopped"]) == (best, stopped)
    assert found["images_per_second"] == rates[best]
    assert [step["batch"] for step in found["tried"]] == [batch for batch, rate in rates.items() if rate]


def test_the_search_begins_with_the_largest_batch_where_that_is_small(monkeypatch):
    monkeypatch.setattr(timing, "_throughput", lambda model, inputs, batch, seconds: 10.0)
    assert timing.fastest_batch(None, lambda batch: {}, start=8, most=2)["batch"] == 2

    def full(*_):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(timing, "_throughput", full)
    with pytest.raises(InputError, match="batch of 8 does not fit"):
        timing.fastest_batch(None, lambda batch: {})


def test_variants_share_weights_and_differ_in_reduction():
    base = tiny()
    whole, part, plain = (named_models.variant(base, config) for config in (NoReduction(), REDUCTION, None))
    assert [pumer.reduction(model) for model in (base, whole, part, plain)] == [None, NoReduction(), REDUCTION, None]
    for model in (whole, part, plain):
        assert [id(tensor) for tensor in model.parameters()] == [id(tensor) for tensor in base.parameters()]
    inputs = inputs_for(base, 32, 6, batch=2)
    expected = pumer.patch(base, REDUCTION)(**inputs).logits
    assert torch.equal(part(**inputs).logits, expected)
    assert not torch.equal(whole(**inputs).logits, expected)


def test_time_split_leaves_the_model_as_it_was():
    model = pumer.patch(tiny(), REDUCTION)
    inputs = inputs_for(model, 32, 6, batch=2)
    before = model(**inputs).logits
    split = time_split(model, inputs, runs=2)
    assert set(split) == {"embedding", "reduce", "rest"}
    assert min(split.values()) > 0
    assert pumer.reduction(model) is REDUCTION
    assert torch.equal(model(**inputs).logits, before)
    with pumer.trace(model) as trace:
        model(**inputs)
    assert trace.forwards[0].places == (("fusion", 1),)
    assert time_split(pumer.patch(model, NoReduction()), inputs, runs=1)["reduce"] == 0


def test_a_benchmark_from_end_to_end(folder, tmp_path, monkeypatch):
    jobs = []

    def measured(job):
        jobs.append(job)
        return {"weights": 1000, "activations": 200 if job.autograd else 100}

    monkeypatch.setattr(benchmark, "peak_memory", measured)
    out, shown = tmp_path / "result.json", StringIO()
    config = BenchmarkConfig(
        model=folder,
        batch_sizes=(1, 2),
        pairs=3,
        search=True,
        search_seconds=0,
        output=out,
        device="cpu",
        progress=False,
    )
    result = benchmark.run(config, Console(file=shown, width=80))
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    names = ["unreduced", "reduced", "transformers"]
    assert [row["name"] for row in result["rows"]] == names
    assert [entry["batch"] for entry in result["rows"][1]["speed"]] == [1, 2]
    assert "speedup" not in result["rows"][0]["speed"][0]
    assert result["rows"][1]["ideal_speedup"] > 1
    assert result["rows"][1]["memory"] == 1100
    assert [(job.reduction and job.reduction["method"], job.autograd) for job in jobs] == [
        (method, autograd) for method in ("none", "pumer", None) for autograd in (False, True)
    ]
    assert set(result["split"]) == {"unreduced", "reduced"}
    assert set(result["fastest"]) == set(names)
    assert result["plan"]["reduced"]["tokens"][1] == ("1", 10, 10)
    assert {"command", "versions", "commit", "config", "threads", "device"} <= set(result["provenance"])
    text = shown.getvalue()
    assert all(name in text for name in names)
    assert "peak memory" in text
    assert "…" not in text  # fits 80 columns


def test_too_large_a_batch_shows_before_anything_is_timed(folder, monkeypatch):
    def killed(job):
        raise RuntimeError("measuring memory failed: exit code -9")

    monkeypatch.setattr(benchmark, "peak_memory", killed)
    monkeypatch.setattr(benchmark, "compare", lambda *args, **kwargs: pytest.fail("it was timed"))
    with pytest.raises(InputError, match=r"exit code -9 \(unreduced, memory_batch=8\); lower memory_batch"):
        benchmark.run(BenchmarkConfig(model=folder, device="cpu", progress=False))


def test_words_are_those_of_the_training(tmp_path):
    model = tiny()
    assert named_models.default_text_length(str(tmp_path), model) == 12  # its positions
    model.config.max_position_embeddings = 514
    assert named_models.default_text_length(str(tmp_path), model) == 32
    (tmp_path / "run.json").write_text('{"config": {"text_length": 7}}')
    assert named_models.default_text_length(str(tmp_path), model) == 7


def test_a_slow_down_is_called_one():
    assert times(0.5) == "0.50x as fast"
    assert times(1.5) == "1.50x"


def test_named_reductions(folder):
    reductions = {"prune": {"method": "pumer", "layers": [0], "prune_ratio": 0.5}, "off": "none"}
    config = BenchmarkConfig(
        model=folder,
        reductions=reductions,
        transformers=False,
        batch_sizes=(1,),
        pairs=1,
        memory_batch=0,
        device="cpu",
        progress=False,
    )
    result = benchmark.run(config, Console(quiet=True))
    assert list(result["plan"]) == ["unreduced", "prune", "off"]
    assert "memory" not in result
    assert result["plan"]["off"]["ideal_speedup"] == 1


def test_settings_that_do_not_fit(tmp_path):
    with pytest.raises(InputError, match="batch_sizes"):
        BenchmarkConfig(batch_sizes=())
    with pytest.raises(InputError, match=r"'pairs' .* must be .* in \[.* not 0"):
        BenchmarkConfig(pairs=0)
    with pytest.raises(InputError, match=r"'threads' .* must be .* in \[.* not 0"):
        BenchmarkConfig(threads=0)
    with pytest.raises(InputError, match=r"'memory_batch' .* must be .* in \[.* not -1"):
        BenchmarkConfig(memory_batch=-1)
    with pytest.raises(InputError, match=r"'seconds' .* must be .* in \[.* not -1"):
        BenchmarkConfig(seconds=-1.0)
    with pytest.raises(InputError, match="is a folder; give the name of a file"):
        benchmark.run(BenchmarkConfig(output=tmp_path))
    with pytest.raises(InputError, match="preset 'large' is unknown; there are: vilt-b32"):
        benchmark.run(BenchmarkConfig(model="preset:large"))
    pumer.save(tiny(), tmp_path / "plain")
    with pytest.raises(InputError, match="nothing to compare"):
        benchmark.run(BenchmarkConfig(model=str(tmp_path / "plain"), transformers=False))


def test_peak_memory_of_a_forward(folder):
    """In a process of its own, as the benchmark does; and in this one."""
    job = Job(folder, {"method": "none"}, batch=64, autograd=True, threads=1)
    peak = peak_memory.peak_memory(job)
    assert peak["weights"] == peak_memory.bytes_of(tiny())
    kept = 64 * (12 + 17) * 64 * 4 * 2 * 3  # bytes: both sides of the activation function, three layers
    assert peak["activations"] > kept
    assert peak_memory.measure(Job(folder, None, batch=2))["weights"] == peak["weights"]


def test_a_failed_measurement_says_so(monkeypatch):
    monkeypatch.setattr(peak_memory.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="measuring memory failed: exit code 1"):
        peak_memory.peak_memory(Job("preset:vilt-b32", None, batch=1))


def test_planning_by_name(folder):
    planned = run_plan(PlanConfig(model=folder))
    assert planned.image_size == (32, 32)
    assert planned.text_length == 12
    assert planned.ideal_speedup > 1
    assert run_plan(PlanConfig(model=folder, reduction="none", text_length=3)).ideal_speedup == 1
    assert 15.93 < run_plan(PlanConfig()).macs / 1e9 < 15.97


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu(folder, dtype):
    config = BenchmarkConfig(
        model=folder, batch_sizes=(2,), pairs=2, dtype=dtype, device="cuda", memory_batch=2, search=True
    )
    result = benchmark.run(config, Console(quiet=True))
    assert result["memory"]["reduced"]["autograd"] > result["memory"]["reduced"]["inference"] > 0
