"""The benchmark of decoders: what it compares, and what it finds too slow; measured once, on a tiny model."""

import sys

import pytest
from tiny.decoders import DECODERS

import pumer
from benchmarks import decoder
from pumer.profiling import generation_benchmark, generation_memory
from pumer.profiling.generation import STAGES
from pumer.reducers import config_from_dict
from pumer.reducers.shortening.base import ShorteningConfig
from pumer.utils.files import read_json


def test_methods_reduce_after_the_quarters_of_a_decoder():
    of_12, of_36 = (decoder.reductions(name) for name in ("llava-0.1b", "qwen2.5-vl-3b"))
    before = ["DivPrune; 0.75", "CDPruner; 0.75", "DivPrune; 0.5, FastV, 1; 0.5"]
    assert list(of_12) == ["FastV, 1; 0.5", "PyramidDrop, 2,5,8; 0.5", "PuMer, 2,5,8; 0.2 + 0.3", *before]
    assert list(of_36) == ["FastV, 1; 0.5", "PyramidDrop, 8,17,26; 0.5", "PuMer, 8,17,26; 0.2 + 0.3", *before]
    for name, settings in of_12.items():
        config = config_from_dict(settings)
        shortens = isinstance(config, ShorteningConfig)
        assert {stack for stack, _ in config.places()} == (set() if shortens else {"decoder"})
        assert (shortens or config.before is not None) == (name in before)


def test_every_point_is_kept(tmp_path, monkeypatch, capsys):
    model = DECODERS["llava"].model()
    monkeypatch.setattr(generation_benchmark, "base_model", lambda *_: model)
    monkeypatch.setattr(generation_benchmark, "peak_memory", generation_memory.measure)
    given = ["--image-tokens", "32", "17", "--pairs=1", "--new-tokens=1", "--text-tokens=9", f"--results={tmp_path}"]
    steps = {
        "half": {"method": "random", "layers": [1], "stack": "decoder", "prune_ratio": 0.5},
        "before": {"method": "divprune", "prune_ratio": 0.5},
    }
    monkeypatch.setattr(decoder, "reductions", lambda _: steps)
    monkeypatch.setattr(generation_memory, "variant", lambda base, config: base)
    monkeypatch.setattr(sys, "argv", ["decoder.py", *given])
    decoder.main()
    (path,) = tmp_path.iterdir()
    assert path.name == "decoder-llava-0.1b-cpu.json"
    found = read_json(path)
    assert list(found) == ["float32, 32 image tokens, batch 1", "float32, 17 image tokens, batch 1"]
    whole, failed = found.values()
    assert list(whole["plan"]) == ["transformers", "unreduced", "half", "before"]
    assert list(whole["points"][0]["choosing"]) == ["before"]
    assert "image_tokens is 17" in failed["failed"]
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*found, "failed: InputError"))
    assert pumer.reduction(model) is None


def result(decoder_speedup, token_speedup):
    def timed(ratio):
        return {"seconds": {"median": 1.0}, "speedup": {"median": ratio}}

    stages = {stage: {"transformers": timed(1), "unreduced": timed(1), "half": timed(2)} for stage in STAGES}
    stages["decoder"]["half"], stages["decode"]["half"] = timed(decoder_speedup), timed(token_speedup)
    return {
        "plan": {"transformers": {}, "unreduced": {"ideal_speedup": 1.0}, "half": {"ideal_speedup": 2.0}},
        "points": [{"batch": 1, **stages}],
    }


@pytest.mark.parametrize(
    ("prefill", "token", "named"),
    [(1.9, 0.98, []), (1.89, 1.1, ["decoder"]), (2, 0.97, ["token"]), (1, 0.9, ["token", "decoder"])],
)
def test_what_is_too_slow_is_named(prefill, token, named):
    lines = list(decoder.missed(result(prefill, token)))
    assert len(lines) == len(named)
    for line, word in zip(lines, named, strict=True):
        assert line.startswith("half") and word in line
