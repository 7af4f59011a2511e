"""Pictures and words as METER reads them."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY
from transformers import AutoProcessor, RobertaTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

import pumer
from pumer.checkpoint import load_processor
from pumer.models.meter import MeterImageProcessorPil, MeterProcessor
from pumer.utils.errors import InputError


@pytest.fixture
def processor():
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcdefghijklmnopqrstuvwxyz", "\u0120"]
    tokenizer = RobertaTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[])
    return MeterProcessor(MeterImageProcessorPil(size={"height": 48, "width": 48}), tokenizer)


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))


def test_pictures_become_squares(processor, picture):
    expected = np.asarray(picture.resize((48, 48), Image.Resampling.BICUBIC)) / 255
    expected = (expected - np.array(OPENAI_CLIP_MEAN)) / np.array(OPENAI_CLIP_STD)
    pixels = processor(picture, "a cat", return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 48, 48)
    assert np.abs(pixels[0].permute(1, 2, 0).numpy() - expected).max() < 1e-5
    assert MeterImageProcessorPil().size == {"height": 384, "width": 384}


def test_grey_pictures_have_three_channels(processor, picture):
    assert processor(picture.convert("L"), "a cat", return_tensors="pt")["pixel_values"].shape == (1, 3, 48, 48)


def test_the_model_takes_what_the_processor_gives(processor, picture):
    inputs = processor([picture, picture], ["a cat", "what is it"], padding=True, return_tensors="pt")
    assert inputs["attention_mask"].sum(dim=1).tolist() == [7, 12]
    assert TINY["meter"].build()(**inputs).logits.shape == (2, 7)


def test_saved_and_loaded(processor, picture, tmp_path):
    pumer.save(TINY["meter"].build(), tmp_path)
    processor.save_pretrained(tmp_path)
    expected = processor(picture, "a cat", return_tensors="pt")
    for again in (AutoProcessor.from_pretrained(tmp_path), load_processor(tmp_path)):
        assert isinstance(again, MeterProcessor)
        found = again(picture, "a cat", return_tensors="pt")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_checkpoint_without_a_tokenizer_is_refused(processor, tmp_path):
    pumer.save(TINY["meter"].build(), tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="holds no tokenizer"):
        load_processor(tmp_path)
