"""The small models of the built-in world: configurations, processors, shipped checkpoints."""

from __future__ import annotations

import tempfile
from pathlib import Path

from transformers import AutoTokenizer, ViltConfig, ViltImageProcessorPil, ViltProcessor

from benchmarks.pretrain_small.tokenizer import MAX_LENGTH, save_tokenizer
from pumer.models.meter import MeterConfig, MeterImageProcessorPil
from pumer.utils.shipped import SMALL
from pumer.world import sentences

IMAGE_SIZE = 96
PATCH_SIZE = 8
VOCABULARY_SIZE = 202


def small_vilt(
    layers: int = 12, answers: tuple[str, ...] = sentences.answers(), vocabulary: int = VOCABULARY_SIZE
) -> ViltConfig:
    """A ViLT on 12 x 12 patches of 8 pixels: 145 image tokens, as many as ViLT-B/32 has at 384 pixels.

    Args:
        layers: transformer layers.
        answers: the answer vocabulary of the question answering head.
        vocabulary: words of the tokenizer.
    """
    return ViltConfig(
        vocab_size=vocabulary,
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


def small_meter(
    pairs: int = 6, answers: tuple[str, ...] = sentences.answers(), vocabulary: int = VOCABULARY_SIZE
) -> MeterConfig:
    """A METER on 12 x 12 patches of 8 pixels: a text encoder of 2 layers, a vision encoder of 4.

    Args:
        pairs: pairs of cross-modal layers.
        answers: the answer vocabulary of the question answering head.
        vocabulary: words of the tokenizer.
    """
    shape = {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 192}
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    text = {"num_hidden_layers": 2, "vocab_size": vocabulary, "max_position_embeddings": MAX_LENGTH + 1}
    vision = {"num_hidden_layers": 4, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "hidden_act": "gelu"}
    return MeterConfig(
        text_config=shape | dropouts | text | {"pad_token_id": 0},
        vision_config=shape | vision | {"layer_norm_eps": 1e-12},
        num_cross_modal_pairs=pairs,
        id2label=dict(enumerate(answers)),
        label2id={answer: index for index, answer in enumerate(answers)},
        **shape,
        **dropouts,
    )


def small_image_processor() -> ViltImageProcessorPil:
    """Resizes the shorter side to 96 pixels, scales to [-1, 1] and pads; Pillow only."""
    return ViltImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, size_divisor=PATCH_SIZE, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def meter_image_processor() -> MeterImageProcessorPil:
    """Resizes to 96 x 96 pixels and scales to [-1, 1]; Pillow only."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return MeterImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def small_processor() -> ViltProcessor:
    """The small models' processor, read from the shipped checkpoint or, without one, made anew."""
    if (SMALL["small:vilt"] / "tokenizer.json").exists():
        return ViltProcessor(small_image_processor(), AutoTokenizer.from_pretrained(SMALL["small:vilt"]))
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(Path(folder))
        return ViltProcessor(small_image_processor(), AutoTokenizer.from_pretrained(folder))
