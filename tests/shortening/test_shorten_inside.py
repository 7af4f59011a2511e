"""Models that shorten every prompt they get, in generate and in later turns, alone and beside a reduction inside."""

import copy
from itertools import product

import pytest
import torch
from shortening.families import (
    BOTH,
    GRID,
    HALF,
    INSIDE,
    WITH_BEAMS,
    able,
    batch,
    check,
    each_of,
    few,
    generated,
    ids_left,
    model_of,
    samples,
    together,
)
from tiny import covering
from tiny.decoders import DECODERS, IMAGE, Sample, text
from transformers import DynamicCache, StaticCache

import pumer
from pumer import InputError, PuMerConfig, Step
from pumer.prompts import shorten, shortened

IN_VISION = PuMerConfig(schedule=(Step(stack="vision", layer=1, merge_ratio=0.3),), before=HALF)


# ---------------------------------------------------------------- generate


@each_of(*WITH_BEAMS)
def test_generate_shortens_and_returns_all_ids(family, model):
    inputs = batch(family)
    expected = generated(model, shorten(model, inputs, HALF))
    T = inputs["input_ids"].shape[1]
    with shortened(model, HALF):
        check(generated(model, inputs), expected, tolerance=0)
        alone = batch(family, samples(family)[0])
        check(generated(model, alone, use_cache=False), generated(model, alone))
        whole = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert torch.equal(whole[:, :T], inputs["input_ids"]) and torch.equal(whole[:, T:], expected[0])
        beams = model.generate(**inputs, max_new_tokens=3, do_sample=False, num_beams=3, num_return_sequences=2)
        assert torch.equal(beams[:, :T], inputs["input_ids"].repeat_interleave(2, dim=0))
        with pumer.disabled(model):
            stock = generated(model, inputs)
    check(generated(model, inputs), stock, tolerance=0)
    assert not torch.equal(stock[1], expected[1])


@pytest.mark.parametrize(("family", "config"), covering(able(*DECODERS), INSIDE))
def test_each_prompt_is_reduced_as_if_it_were_alone(family, config, model):
    pumer.patch(model, config)
    whole = generated(model, batch(family))
    for n, sample in enumerate(samples(family)):
        alone = generated(model, batch(family, sample))
        check((alone[0][0], alone[1][0]), (whole[0][n], whole[1][n]))
    check(generated(model, batch(family), cache_implementation="static"), whole)


@pytest.mark.parametrize("family", ["llava", "llava_onevision", "smolvlm"])
def test_beside_merging_in_the_vision_encoder(family, model):
    pumer.patch(model, IN_VISION)
    whole = generated(model, batch(family))
    for n, sample in enumerate(samples(family)):
        alone = generated(model, batch(family, sample))
        check((alone[0][0], alone[1][0]), (whole[0][n], whole[1][n]))


@few
@together
def test_the_layers_after_a_reduction_see_what_both_have_left(family, model):
    inputs = batch(family, samples(family)[0])
    short = ids_left(family, inputs, HALF)
    images = int((short == IMAGE).sum())
    with pumer.patched(model, BOTH):
        cache = model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True).past_key_values
    lengths = [cache.get_seq_length(layer) for layer in range(6)]
    assert lengths == [short.shape[1]] * 2 + [short.shape[1] - round(images / 2)] * 4


@few
def test_limits_count_the_whole_prompt(family, model):
    inputs = batch(family)
    T = inputs["input_ids"].shape[1]
    with shortened(model, HALF):
        assert model.generate(**inputs, max_length=T + 4, do_sample=False).shape[1] == T + 4
        settings = copy.deepcopy(model.generation_config)
        settings.max_length, settings.do_sample = T + 2, False
        assert model.generate(**inputs, generation_config=settings).shape[1] == T + 2


def two_turns(model, inputs, more, cache):
    """Ids before the second answer, and its words and logits; the first one has three words."""
    first = model.generate(**inputs, max_new_tokens=3, do_sample=False, past_key_values=cache)
    ids = torch.cat([first, torch.tensor([more] * len(first))], dim=1)
    mask = torch.ones_like(ids)
    mask[:, : inputs["attention_mask"].shape[1]] = inputs["attention_mask"]
    second = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}
    out = model.generate(**second, max_new_tokens=2, do_sample=False, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(out.sequences[:, :-2], ids)
    return ids, (out.sequences[:, -2:], torch.stack(out.logits, dim=1))


@pytest.mark.parametrize(
    ("family", "turns"), covering(able(*DECODERS), [*product(INSIDE[:2], [DynamicCache, StaticCache])])
)
def test_a_later_turn_sees_what_the_first_one_kept(family, turns, model):
    """Against the stock model's forward over both turns, in which what is gone is masked and positions are kept."""
    config, kind = turns
    chosen, more = samples(family)[:2], text(4, 5)
    size = {"max_cache_len": 200} if kind is StaticCache else {}

    def empty():
        return kind(config=model.config.get_text_config(), **size)

    pumer.patch(model, config)
    ids, whole = two_turns(model, batch(family, *chosen), more, empty())
    for n, sample in enumerate(chosen):
        alone = two_turns(model, batch(family, sample), more, empty())[1]
        check((alone[0][0], alone[1][0]), (whole[0][n], whole[1][n]))
    pumer.unpatch(model)
    for n, sample in enumerate(chosen if config is HALF else ()):
        expected = both_turns(family, sample, ids[n, -len(sample.ids) - 7 :].tolist())
        torch.testing.assert_close(whole[1][n, 0].double(), expected, atol=1e-5, rtol=0)


def both_turns(family, sample, ids):
    """Last logits of the stock model that sees both turns, but what is gone of the first prompt."""
    model, inputs = model_of(family), batch(family, Sample(ids, sample.images))
    left = shorten(model, batch(family, sample), HALF)["position_ids"]
    kept = (left[0] if family in GRID else left)[0].tolist()
    seen, place = torch.ones_like(inputs["input_ids"]), torch.arange(len(ids))[None]
    seen[0, [place for place in range(len(sample.ids)) if place not in kept]] = 0
    if family in GRID:
        rest = {name: x for name, x in inputs.items() if name != "pixel_values"}
        place = torch.cat([place[None], model.model.get_rope_index(**rest)[0]])
    return model(**{**inputs, "attention_mask": seen, "position_ids": place}).logits[0, -1]


@few
def test_a_later_prompt_with_images_is_refused(family, model):
    inputs = batch(family)
    cache = DynamicCache(config=model.config.get_text_config())
    with shortened(model, HALF):
        model.generate(**inputs, max_new_tokens=2, past_key_values=cache)
        with pytest.raises(InputError, match="past_key_values"):
            model.generate(**inputs, max_new_tokens=2, past_key_values=cache)
