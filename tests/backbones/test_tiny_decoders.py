"""Are the tiny decoders' inputs right? What stock transformers says to a prompt does not depend on its batch."""

from dataclasses import replace

import pytest
import torch
from tiny.decoders import DECODERS, IMAGE, REFUSED, WORDS, Sample, text


def _generated(model, inputs):
    return model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True)


@pytest.mark.parametrize("family", DECODERS)
def test_a_padded_batch_says_what_each_prompt_says_alone(family):
    tiny = DECODERS[family]
    model = tiny.model().double()
    samples = [tiny.sample(0), tiny.sample(1, images=2, before=7, after=3)]
    whole = _generated(model, tiny.batch(samples))
    logits = torch.stack(whole.logits, dim=1)
    assert logits.shape[:2] == (2, 4) and all(word in WORDS for word in whole.sequences[:, -4:].flatten().tolist())
    for i, sample in enumerate(samples):
        alone = _generated(model, tiny.batch([sample]))
        torch.testing.assert_close(torch.stack(alone.logits, dim=1)[0], logits[i], rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", DECODERS)
def test_a_batch_padded_right_computes_what_each_prompt_computes_alone(family):
    tiny = DECODERS[family]
    model = tiny.model().double()
    samples = [tiny.sample(2), tiny.sample(3, images=2, after=9), Sample(text(5, seed=4), ())]
    whole = model(**tiny.batch(samples, padding="right")).logits
    for sample, logits in zip(samples, whole, strict=True):
        alone = model(**tiny.batch([sample])).logits[0]
        torch.testing.assert_close(alone, logits[: len(sample.ids)], rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", DECODERS)
def test_answers_depend_on_words_and_on_pixels(family):
    tiny = DECODERS[family]
    model, sample = tiny.model().double(), tiny.sample(0)
    logits = model(**tiny.batch([sample])).logits[0, -1]
    word = Sample([3 if sample.ids[0] != 3 else 4, *sample.ids[1:]], sample.images)
    pixels = Sample(sample.ids, tuple(replace(image, pixels=-image.pixels) for image in sample.images))
    for changed in (word, pixels):
        assert (model(**tiny.batch([changed])).logits[0, -1] - logits).abs().max() > 0.1


@pytest.mark.parametrize("family", [family for family in DECODERS if family != "llava"])
def test_images_differ_in_size(family):
    tiny = DECODERS[family]
    assert len({tiny.sample(seed).ids.count(IMAGE) for seed in range(4)}) > 1


def test_models_are_the_same_at_every_call_and_leave_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = DECODERS["llava"].model(), DECODERS["llava"].model()
    assert torch.equal(torch.rand(3), expected)
    for x, y in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(x, y) and x is not y


@pytest.mark.parametrize("family", REFUSED)
def test_other_families_build(family):
    assert REFUSED[family]().config.model_type == family
