"""Models and prompts of every generative family, and what they generate."""

from dataclasses import replace
from functools import cache
from inspect import signature

import pytest
import torch
from tiny.decoders import DECODERS, IMAGE, IMAGE_START, Sample, text
from transformers import LlavaModel

from pumer import FastVConfig, PuMerConfig, Step
from pumer.backbones.shortening import shorten_prompts
from pumer.reducers.shortening.divprune import DivPruneConfig
from pumer.reducers.shortening.pooling_prompt import PoolingPromptConfig

OLD = "mm_encoder_outputs" not in signature(LlavaModel.forward).parameters
"""Whether this is a transformers whose models do not take encoded images."""
HALF = DivPruneConfig(prune_ratio=0.5)
FASTV = FastVConfig(layers=(1,), prune_ratio=0.5)
BOTH = replace(FASTV, before=HALF)
PUMER = PuMerConfig(
    schedule=(Step(stack="decoder", layer=0, prune_ratio=0.2, merge_ratio=0.3),), before=PoolingPromptConfig()
)
INSIDE = [HALF] if OLD else [HALF, BOTH, PUMER]
"""Alone, and beside a reduction inside the decoder, where this transformers can do both."""
TOLERANCE = 1e-5  # logits of generate are float32


GRID = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")
"""Families whose positions have rows."""
together = pytest.mark.skipif(OLD, reason="this transformers' decoders cannot reduce what was shortened before")


def able(*names):
    """These families, but for those that this transformers cannot shorten."""
    return [name for name in names if not (OLD and name == "qwen3_vl")]


def each_of(*names):
    """Run a test for these families."""
    return pytest.mark.parametrize("family", able(*names))


families = each_of(*DECODERS)
few = each_of("llava", "qwen3_vl", "smolvlm")
WITH_BEAMS = tuple(name for name in DECODERS if not (OLD and name == "glm4v"))
"""Older ones look for ids around images that the tiny GLM-4V does not have."""


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


def ids_left(family, inputs, config):
    """``(B, K)``: those of the prompts that are left."""
    return shorten_prompts(model_of(family).model, inputs, config).ids


def images_of(family, sample):
    """Places of the tokens of each image of a prompt, and their features ``(n, D)``, by a plain loop."""
    output = model_of(family).model.get_image_features(**encoder_inputs(batch(family, sample)), return_dict=True)
    pooled = output.pooler_output
    features = pooled.flatten(0, 1) if isinstance(pooled, torch.Tensor) else torch.cat(list(pooled))
    places = [place for place, token in enumerate(sample.ids) if token == IMAGE]
    for image in sample.images:
        count = image.ids.count(IMAGE)
        yield places[:count], features[:count]
        places, features = places[count:], features[count:]


def encoder_inputs(inputs):
    names = ("pixel_values", "image_grid_thw", "image_sizes", "batch_num_images", "pixel_attention_mask")
    return {name: x for name, x in inputs.items() if name in names}
