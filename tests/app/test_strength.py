"""From sliders to reductions: as many tokens are gone as was asked for, by every method that is offered."""

from itertools import product

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
from pumer.utils.errors import InputError
from pumer.utils.files import write_json
from pumer.utils.shipped import SMALL


@pytest.fixture(scope="module", params=SMALL)
def small(request):
    return ComparedModel(SMALL[request.param])


def test_every_method_removes_what_was_asked_for(small):
    image = Image.open("docs/images/scene.png")
    for method in small.strength.methods:
        prunes, merges = Strength.amounts(method)
        assert prunes or merges
        for prune, merge in ((0.3, 0.3), (0.5, 0.0), (0.0, 0.5)):
            config = small.strength.config(method, prune, merge)
            asked = prune * prunes + merge * merges
            with torch.inference_mode():
                forward = small._ask(image, "is there a red circle?", config).forward
            entered = 145
            left = int(forward.tokens_per_place[-1][1]) if forward.places else entered
            if method == "tome" and "vilt" in small.name:  # words and image are one there, and all count as image
                entered += forward.text_tokens
            assert abs(left / 145 - (1 - asked)) < 0.05, (method, prune, merge, left)
            if forward.places and method == "pumer":
                gone = [int((at >= 0)[0, forward.text_tokens :].sum()) for at in (forward.pruned_at, forward.merged_at)]
                assert all(abs(x / 145 - share) < 0.04 for x, share in zip(gone, (prune, merge), strict=True))


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


def test_a_model_that_generates(tmp_path):
    pumer.save(DECODERS["llava"].model(), tmp_path)
    PROCESSORS["llava"]().save_pretrained(tmp_path)
    found = ComparedModel(str(tmp_path))
    assert set(found.strength.methods) == {*DECODER, *PROMPT} - {"tome"} and not found.small
    image = Image.effect_noise((60, 40), 90).convert("RGB")
    for method in ("pumer", "fastv", "divprune"):
        comparison = found.ask(image, "what is this", method, 0.5, 0.1)
        assert len(comparison.answers) == 2 and comparison.fewer_macs is None and len(comparison.panels) >= 3
        assert "pumer.patch" in rendering.comparison(comparison, found.name)


def test_a_model_for_another_question_is_refused(tmp_path):
    config = load(SMALL["small:vilt"]).config
    ViltForImageAndTextRetrieval(config).save_pretrained(tmp_path)
    load_processor(SMALL["small:vilt"]).save_pretrained(tmp_path)
    write_json(tmp_path / "run.json", {"config": {"task": "flickr30k"}})
    with pytest.raises(InputError, match="flickr30k"):
        ComparedModel(str(tmp_path))
