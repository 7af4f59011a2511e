"""The small model: its shape, its processor, and the shipped checkpoint."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViltConfig, ViltForQuestionAnswering, ViltProcessor

from pumer.world import checkpoint_dir, small_processor, small_vilt
from pumer.world.sentences import ANSWERS
from pumer.world.tokenizer import train_tokenizer


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


@pytest.mark.skipif(not (checkpoint_dir() / "model.safetensors").exists(), reason="no checkpoint in this tree")
def test_the_shipped_checkpoint_loads_with_plain_transformers() -> None:
    model = ViltForQuestionAnswering.from_pretrained(checkpoint_dir(), dtype=torch.float32)
    assert model.config.num_hidden_layers == 12
    assert list(model.config.id2label.values()) == list(ANSWERS)
    assert (checkpoint_dir() / "model.safetensors").stat().st_size < 8_000_000
    assert (checkpoint_dir() / "README.md").exists()
    assert isinstance(ViltProcessor.from_pretrained(checkpoint_dir()), ViltProcessor)
