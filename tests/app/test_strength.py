"""From sliders to reductions: as many tokens are gone as was asked for, by every method that is offered."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny.decoders import DECODERS
from tiny.processors import PROCESSORS
from transformers import ViltForImageAndTextRetrieval

import pumer
from pumer.app import rendering
from pumer.app.comparing import ComparedModel
from pumer.app.strength import Strength, as_python
from pumer.checkpoint import load, load_processor
from pumer.settings.tune import DECODER, PROMPT
from pumer.tasks import Example
from pumer.utils.errors import InputError
from pumer.utils.files import write_json
from pumer.utils.shipped import SMALL

SCENE = Path(__file__).parents[2] / "docs/images/scene.png"


@pytest.fixture(scope="module", params=["small:vilt", "small:meter"])
def small(request):
    return ComparedModel(SMALL[request.param])


def test_every_method_removes_what_was_asked_for(small):
    model, entered = small._session.model, small.strength.image_tokens
    assert entered == 145
    inputs, _ = small._prepared(Example(0, (Image.open(SCENE),), "is there a red circle?"))
    for method, (prune, merge) in product(small.strength.methods, ((0.3, 0.3), (0.5, 0.0), (0.0, 0.5))):
        prunes, merges = Strength.amounts(method)
        pumer.patch(model, small.strength.config(method, prune, merge))
        with torch.inference_mode(), pumer.trace(model) as trace:
            model(**inputs)
        (forward,) = trace.forwards
        gone = [int((at >= 0).sum()) for at in (forward.pruned_at, forward.merged_at)]
        gone[1] -= int((forward.merged_at[:, : forward.text_tokens] >= 0).sum()) * (method == "pumer")  # words
        asked = [prune * prunes, merge * merges]
        if method == "evit":  # merges what it prunes
            gone, asked = [sum(gone)], asked[:1]
        assert gone == [pytest.approx(share * entered, abs=6) for share in asked], (method, prune, merge)


def test_the_call_that_is_shown_makes_the_same_reduction(small):
    for method, (prune, merge) in product(small.strength.methods, ((0.2, 0.6), (0.9, 0.0), (0.0, 0.4), (0.0, 0.0))):
        config, made = small.strength.config(method, prune, merge), []
        shown = as_python(config)
        stand_in = type("pumer", (), {name: getattr(pumer, name) for name in pumer.__all__ if name != "patch"})
        stand_in.patch = lambda model, config, made=made: made.append(config)
        exec(shown, {"pumer": stand_in, "model": None})
        assert made == [config], shown


@pytest.mark.parametrize(
    ("method", "prune", "merge", "said"),
    [("pumer", 0.5, 0.5, "100%"), ("cls", 0.95, 0, "95%"), ("cls", -0.1, 0, "-10%"), ("cls", float("nan"), 0, "nan"),
     ("victor", 0.2, 0, "victor"), (["pumer"], 0.2, 0, "pumer")],
)  # fmt: skip
def test_amounts_and_methods_that_do_not_exist_are_named(small, method, prune, merge, said):
    with pytest.raises(InputError, match=said):
        small.strength.config(method, prune, merge)


def test_a_model_that_generates(tmp_path, monkeypatch):
    pumer.save(DECODERS["llava"].model(), tmp_path)
    PROCESSORS["llava"]().save_pretrained(tmp_path)
    found = ComparedModel(str(tmp_path))
    assert set(found.strength.methods) == {*DECODER, *PROMPT} - {"tome"} and not found.small
    image = Image.effect_noise((60, 40), 90).convert("RGB")
    monkeypatch.setattr("pumer.app.comparing.ROUNDS", 1)
    for method in ("pumer", "divprune"):
        comparison = found.ask(image, "what is this", method, 0.5, 0.1)
        assert len(comparison.answers) == 2 and comparison.fewer_macs is None and len(comparison.panels) >= 3
        said = replace(comparison, answers=dict.fromkeys(comparison.answers, "<script>" + "a" * 50))
        shown = rendering.comparison(said, found.name)
        assert ("<td>before the decoder</td>" in shown) == (method == "divprune")
        assert "pumer.patch" in shown and "<script" not in shown and "answer long" in shown


def test_only_so_many_plans_are_kept(monkeypatch):
    monkeypatch.setattr("pumer.app.comparing.PLANS", 3)
    found, planned = ComparedModel(SMALL["small:vilt"]), []
    monkeypatch.setattr(
        "pumer.app.comparing.plan", lambda *given: planned.append(given[1:]) or SimpleNamespace(ideal_speedup=2)
    )
    config = found.strength.config("pumer", 0.2, 0.2)
    assert [found._planned(config, 32, 64, length) for length in (8, 9, 10, 8, 11, 12)] == [2] * 6
    assert planned == [((32, 64), length) for length in (8, 9, 10, 11, 12)]
    assert found._planned.cache_info().currsize == 3


def test_a_model_for_another_question_is_refused(tmp_path):
    config = load(SMALL["small:vilt"]).config
    ViltForImageAndTextRetrieval(config).save_pretrained(tmp_path)
    load_processor(SMALL["small:vilt"]).save_pretrained(tmp_path)
    write_json(tmp_path / "run.json", {"config": {"task": "flickr30k"}})
    with pytest.raises(InputError, match="flickr30k"):
        ComparedModel(str(tmp_path))
