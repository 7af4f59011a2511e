"""The small models of the built-in world: configuration, processor, shipped checkpoint."""

from __future__ import annotations

import tempfile
from pathlib import Path

from transformers import AutoTokenizer, ViltConfig, ViltImageProcessorPil, ViltProcessor

from pumer.world.sentences import ANSWERS
from pumer.world.tokenizer import MAX_LENGTH, save_tokenizer

IMAGE_SIZE = 96
PATCH_SIZE = 8
VOCABULARY_SIZE = 167


def small_vilt(layers: int = 12, answers: tuple[str, ...] = ANSWERS) -> ViltConfig:
    """A ViLT on 12 x 12 patches of 8 pixels: 145 image tokens, as many as ViLT-B/32 has at 384 pixels.

    Args:
        layers: transformer layers.
        answers: the answer vocabulary of the question answering head.
    """
    return ViltConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=192,
        max_position_embeddings=MAX_LENGTH,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(answers)),
        label2id={answer: index for index, answer in enumerate(answers)},
    )


def small_image_processor() -> ViltImageProcessorPil:
    """Resizes the shorter side to 96 pixels, scales to [-1, 1] and pads; Pillow only."""
    return ViltImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, size_divisor=PATCH_SIZE, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def checkpoint_dir() -> Path:
    """The folder of the checkpoint that ships with the package."""
    return Path(__file__).parent.parent / "assets" / "vilt-small"


def small_processor() -> ViltProcessor:
    """The small models' processor, read from the shipped checkpoint or, without one, made anew."""
    if (checkpoint_dir() / "tokenizer.json").exists():
        return ViltProcessor(small_image_processor(), AutoTokenizer.from_pretrained(checkpoint_dir()))
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(Path(folder))
        return ViltProcessor(small_image_processor(), AutoTokenizer.from_pretrained(folder))
