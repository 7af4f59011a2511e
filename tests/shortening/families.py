"""Models and prompts of every generative family, and what they generate."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from tiny.decoders import DECODERS, IMAGE, IMAGE_START, Sample, text

from pumer.shortening.divprune import DivPruneConfig

HALF = DivPruneConfig(prune_ratio=0.5)
TOLERANCE = 1e-5  # logits of generate are float32


families = pytest.mark.parametrize("family", DECODERS)


@cache
def model_of(family):
    """The stock model, which no test patches."""
    return DECODERS[family].model().double().requires_grad_(False)


@cache
def samples(family):
    """Prompts of unequal length: with one image, with two, and without any."""
    tiny = DECODERS[family]
    one, two = tiny.sample(1), tiny.sample(2, images=2, before=7, after=11)
    return (
        *(marked(each) if family in ("smolvlm", "idefics3") else each for each in (one, two)),
        Sample(text(9, 4), ()),
    )


def marked(sample):
    """The same images with ids before tiles as a processor writes them: their row and column, or that it is all."""
    images, ids = [], []
    for image in sample.images:
        marks = [*range(160, 159 + len(image.pixels)), 159]
        whole = [i for mark in marks for i in (IMAGE_START, mark, *[IMAGE] * 4)] + [IMAGE_START]
        images.append(replace(image, ids=whole))
        ids += whole
    return Sample([*text(4, 0), *ids, *text(6, 1)], tuple(images))


def batch(family, *chosen, padding="left"):
    return DECODERS[family].batch(chosen or samples(family), padding=padding)


def generated(model, inputs, tokens=3, **settings):
    """New words, and logits ``(B, tokens, vocabulary)``."""
    settings = {"do_sample": False, "output_logits": True, **settings}
    found = model.generate(**inputs, max_new_tokens=tokens, return_dict_in_generate=True, **settings)
    return found.sequences[:, -tokens:], torch.stack(found.logits, dim=1)


def check(found, expected, tolerance=TOLERANCE):
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=tolerance, rtol=0)
