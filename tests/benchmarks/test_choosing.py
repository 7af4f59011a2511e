"""The benchmark of choices before the decoder: what it compares, on a tiny decoder; no time is asserted."""

import sys

import pytest
from tiny.decoders import DECODERS

from benchmarks import choosing
from pumer.profiling.timing import compare
from pumer.utils.files import read_json


def test_the_same_decoder_reads_whole_and_shortened_prompts(monkeypatch):
    seen = {}

    def recorded(calls, makers, batches, pairs, warm_up):
        for name, call in calls.items():
            inputs = makers[name](1)
            seen[name] = [tuple(x.shape) for x in inputs.values()], call(**inputs)
        return compare(calls, makers, batches, pairs, warm_up=warm_up)

    monkeypatch.setattr(choosing, "compare", recorded)
    text = DECODERS["llava"].model().model.language_model
    result = choosing.measured(text, text_tokens=7, image_tokens=40, prune_ratio=0.75, pairs=2)
    assert {name: shapes for name, (shapes, _) in seen.items()} == {
        choosing.WHOLE: [(1, 47, 32)],
        choosing.SHORT: [(1, 17, 32)],
        "divprune": [(40, 32), (7, 32)],
        "cdpruner": [(40, 32), (7, 32)],
    }
    for name, length in ((choosing.WHOLE, 47), (choosing.SHORT, 17)):
        assert [x.keys.shape[2] for x in seen[name][1].past_key_values.layers] == [length] * 6
    assert result["image_tokens_left"] == 10


@pytest.mark.parametrize(("choice", "named"), [(0.05, False), (0.051, True)])
def test_what_costs_too_much_is_named(choice, named, tmp_path, monkeypatch, capsys):
    seconds = {choosing.WHOLE: 1.5, choosing.SHORT: 0.5, "divprune": choice, "cdpruner": 0.01}
    models = {name: {"seconds": {"median": value}} for name, value in seconds.items()}
    monkeypatch.setattr(choosing, "compare", lambda *_, **__: {"points": [{"models": models}]})
    monkeypatch.setattr(choosing, "base_model", lambda *_: DECODERS["llava"].model())
    monkeypatch.setattr(choosing.torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["choosing.py", f"--results={tmp_path}", "--image-tokens=40"])
    choosing.main()
    result = read_json(tmp_path / "choosing-llava-0.1b-cpu.json")
    assert result["share"] == pytest.approx({"divprune": choice, "cdpruner": 0.01})
    assert {"commit", "config", "versions"} <= result["provenance"].keys()
    assert ("too much" in capsys.readouterr().out) == named
