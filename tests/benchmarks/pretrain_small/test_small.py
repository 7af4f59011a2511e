"""The small models: their shapes, their processors, and the shipped checkpoints."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForVisualQuestionAnswering, ViltConfig, ViltProcessor

from benchmarks.pretrain_small.small import small_meter, small_processor, small_vilt
from benchmarks.pretrain_small.tokenizer import train_tokenizer
from pumer.checkpoint import load_processor
from pumer.utils.shipped import SMALL
from pumer.world.sentences import answers

ANSWERS = answers()


def test_it_has_the_papers_token_counts() -> None:
    config = small_vilt()
    assert isinstance(config, ViltConfig)
    assert (config.image_size // config.patch_size) ** 2 + 1 == 145
    assert config.num_hidden_layers == 12
    assert config.vocab_size == train_tokenizer().get_vocab_size()
    assert [config.id2label[index] for index in range(len(ANSWERS))] == list(ANSWERS)


def test_the_processor_gives_whole_pictures() -> None:
    processor = small_processor()
    assert isinstance(processor, ViltProcessor)
    picture = Image.fromarray(np.full((96, 96, 3), 255, np.uint8))
    inputs = processor(
        [picture] * 2, ["is there a ring?", "what color is the ring?"], padding=True, return_tensors="pt"
    )
    assert inputs["pixel_values"].shape == (2, 3, 96, 96)
    assert inputs["pixel_values"].min() == 1.0
    assert inputs["pixel_mask"].all()
    assert inputs["input_ids"].shape == (2, 8)


def test_the_small_meter_has_twelve_patches_a_side_and_six_pairs() -> None:
    config = small_meter()
    assert (config.image_size // config.patch_size) ** 2 + 1 == 145
    assert config.num_cross_modal_pairs == 6
    assert config.text_config.vocab_size == train_tokenizer().get_vocab_size()
    assert config.max_position_embeddings == small_vilt().max_position_embeddings


@pytest.mark.parametrize("name", ["small:vilt", "small:meter"])
def test_the_shipped_checkpoints(name: str) -> None:
    folder = SMALL[name]
    model = AutoModelForVisualQuestionAnswering.from_pretrained(folder, dtype=torch.float32)
    assert list(model.config.id2label.values()) == list(ANSWERS)
    assert (folder / "model.safetensors").stat().st_size < 8_000_000
    assert (folder / "README.md").exists()
    picture = Image.fromarray(np.full((96, 96, 3), 255, np.uint8))
    inputs = load_processor(folder)([picture], ["is there a ring?"], return_tensors="pt")
    assert model(**inputs).logits.shape == (1, len(ANSWERS))
