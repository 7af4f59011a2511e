"""Fewer pixels by the processors' own settings: what their images become, measured on images of many sizes.

The image processors are transformers' own, in the variants that need no torchvision; a processor around them is a
stand-in with what it gives to the image processor, but for those of `tiny.processors`.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.decoders import DECODERS
from tiny.processors import PROCESSORS
from transformers import (
    Glm4vImageProcessorPil,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    PixtralImageProcessorPil,
    Qwen2VLImageProcessorPil,
    SmolVLMImageProcessorPil,
)

import pumer
from pumer import InputError
from pumer.generative import prompt
from pumer.resolution import _RULES, fewer_pixels

SIZES = [(40, 40), (400, 400), (300, 200), (200, 300), (64, 512), (640, 480), (10, 30)]
GRID = [[64, 64], [64, 128], [128, 64], [128, 128], [192, 64]]


def qwen():
    return Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 256, "longest_edge": 40_000})


def glm():
    return Glm4vImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 256, "longest_edge": 80_000})


def pixtral():
    return PixtralImageProcessorPil(patch_size=8, size={"longest_edge": 200})


def smolvlm(cls=SmolVLMImageProcessorPil, longest=128, **settings):
    return cls(size={"longest_edge": longest}, max_image_size={"longest_edge": 32}, **settings)


def internvl(**settings):
    return GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=True, **settings)


def llava_next():
    edges = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    return LlavaNextImageProcessorPil(**edges, image_grid_pinpoints=GRID)


def onevision():
    return LlavaOnevisionImageProcessorPil(size={"height": 64, "width": 64}, image_grid_pinpoints=GRID)


MADE = {
    "qwen": qwen,
    "glm": glm,
    "pixtral": pixtral,
    "smolvlm": smolvlm,
    "idefics3": lambda: smolvlm(Idefics3ImageProcessorPil),
    "internvl": internvl,
    "llava_next": llava_next,
    "onevision": onevision,
}
LEAST = {"qwen": 64, "glm": 64, "pixtral": 256, "smolvlm": 1024, "idefics3": 1024, "internvl": 1024}
LEAST |= {"llava_next": 2 * 4096, "onevision": 2 * 4096}
each = pytest.mark.parametrize("name", MADE)


def around(images):
    return SimpleNamespace(image_processor=images, patch_size=8, spatial_merge_size=2)


def model():
    return SimpleNamespace(config=SimpleNamespace(image_grid_pinpoints=None))


def pixels(images, width, height):
    """Of one image, as the encoder gets them."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    patches = {"patch_size": {"height": 16, "width": 16}} if isinstance(images, PixtralImageProcessorPil) else {}
    found = images([noise], return_tensors="pt", **patches)
    if "image_grid_thw" in found:
        return int(found["image_grid_thw"].prod()) * images.patch_size**2
    values = found["pixel_values"]
    return values.numel() // 3


@each
@pytest.mark.parametrize("most", [8192, 12_000, 30_000])
def test_images_have_no_more_pixels_than_asked_for_nor_than_before(name, most):
    before, after = MADE[name](), MADE[name]()
    processor = around(after)
    assert fewer_pixels(processor, most, model()) is processor
    for size in SIZES:
        assert pixels(after, *size) <= min(most, pixels(before, *size))


@each
def test_as_much_as_fits_is_kept(name):
    """Of a large image, all but what patches or tiles leave no room for."""
    images = MADE[name]()
    assert pixels(images, 640, 480) > 12_000
    fewer_pixels(around(images), 12_000, model())
    assert pixels(images, 640, 480) > (10_000 if name in ("qwen", "glm") else 3000)


@pytest.mark.parametrize("make", [*MADE.values(), lambda: smolvlm(longest=100)])
def test_more_than_there_are_changes_nothing(make):
    images = make()
    before = images.to_dict()
    fewer_pixels(around(images), 10**6, model())
    assert images.to_dict() == before


def test_small_images_are_not_enlarged_beyond_what_is_asked_for():
    images = qwen()
    assert pixels(images, 14, 11) == 384
    fewer_pixels(around(images), 300)
    assert pixels(images, 14, 11) == 128


@each
def test_the_smallest_image(name):
    images, least = MADE[name](), LEAST[name]
    before = images.to_dict()
    with pytest.raises(InputError, match=rf"max_pixels is {least - 1}, .* {least};"):
        fewer_pixels(around(images), least - 1, model())
    assert images.to_dict() == before
    fewer_pixels(around(images), least, model())
    assert pixels(images, 200, 200) <= least


@each
def test_settings_are_saved(name, tmp_path):
    images = MADE[name]()
    fewer_pixels(around(images), 12_000, model())
    images.save_pretrained(tmp_path)
    again = type(images).from_pretrained(tmp_path)
    assert pixels(again, 640, 480) == pixels(images, 640, 480) <= 12_000


def test_a_tile_that_is_not_split_stays():
    images = smolvlm(do_image_splitting=False)
    before = pixels(images, 200, 100), images.to_dict()
    fewer_pixels(around(images), 1024)
    assert (pixels(images, 200, 100), images.to_dict()) == before


def test_the_least_number_of_tiles_is_lowered():
    images = internvl(min_patches=6, max_patches=12)
    fewer_pixels(around(images), 5 * 1024)
    assert (images.min_patches, images.max_patches) == (4, 4)  # and the whole image


@pytest.mark.parametrize("ending", ["", "Fast"])
@pytest.mark.parametrize("stem", _RULES)
def test_variants_that_need_torchvision(stem, ending):
    """Stand-ins of their names, with the settings of all families; the ones that can be built are tested above."""
    settings = {
        "size": {"height": 64, "width": 64, "shortest_edge": 64, "longest_edge": 10**6},
        "max_image_size": {"longest_edge": 64},
        "do_image_splitting": True,
        **{"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2, "min_patches": 1, "max_patches": 12},
        "image_grid_pinpoints": GRID,
    }
    images = type(f"{stem}{ending}", (), settings)()
    fewer_pixels(around(images), 10_000, model())
    assert vars(images)  # something was set, on the instance
    assert getattr(type(images), next(iter(vars(images)))) != next(iter(vars(images).values()))


def test_processors_whose_images_all_have_one_size():
    with pytest.raises(InputError, match=r"max_pixels is 1000, but a CLIPImageProcessorPil"):
        fewer_pixels(PROCESSORS["llava"](), 1000)


@pytest.mark.parametrize("value", [0, -1, True, 1.5, None])
def test_numbers_that_are_none(value):
    with pytest.raises(InputError, match="max_pixels is "):
        fewer_pixels(around(qwen()), value)


def test_sizes_that_the_model_lists_too():
    """A model whose config was left as it was takes other tiles than there are."""
    processor, llava = PROCESSORS["llava_next"](), DECODERS["llava_next"].model()
    image = Image.fromarray(np.full((64, 64, 3), 100, dtype=np.uint8))
    with pytest.raises(InputError, match="model is missing"):
        fewer_pixels(processor, 3 * 32 * 32)
    whole = prompt(processor, [image], "what is it ?")
    assert pumer.fewer_pixels(processor, 3 * 32 * 32, llava) is processor
    fewer = prompt(processor, [image], "what is it ?")
    assert fewer["pixel_values"].shape[1] == 3 < whole["pixel_values"].shape[1] == 5
    assert fewer["input_ids"].shape[1] < whole["input_ids"].shape[1]
    with torch.no_grad():
        assert llava(**fewer).logits.shape[1] == fewer["input_ids"].shape[1]


def test_a_model_answers_shorter_prompts():
    processor, model = PROCESSORS["qwen2_5_vl"](), DECODERS["qwen2_5_vl"].model()
    image = Image.fromarray(np.full((64, 64, 3), 100, dtype=np.uint8))
    whole = prompt(processor, [image], "what is it ?")
    fewer_pixels(processor, 32 * 32)
    fewer = prompt(processor, [image], "what is it ?")
    found = [int((each["input_ids"] == model.config.image_token_id).sum()) for each in (whole, fewer)]
    assert found == [64, 16]
    assert model.generate(**fewer, max_new_tokens=2).shape[1] == fewer["input_ids"].shape[1] + 2
