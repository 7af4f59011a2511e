"""Tiny METER models, whose images all have one size, and batches for them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pumer.models import meter
from tiny.base import PATCH, WORDS, Sample, Tiny, fill_zeros, padded_batch, random_sample

SIDE = 6
"""Patch rows and columns of METER's images, which all have one size."""


def _build(head: str = "MeterForQuestionAnswering", layers: int = 3, seed: int = 0, **settings) -> nn.Module:
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "initializer_range": 0.2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    dropouts = {name: value for name, value in settings.items() if "dropout" in name}
    config = meter.MeterConfig(
        **shape
        | {
            "text_config": shape
            | dropouts
            | {"num_hidden_layers": min(layers, 2), "vocab_size": WORDS, "max_position_embeddings": 42},
            "vision_config": {
                "hidden_size": 32,
                "num_attention_heads": 4,
                "intermediate_size": 64,
                "initializer_range": 0.2,
                "num_hidden_layers": min(layers, 3),
                "image_size": SIDE * PATCH,
                "patch_size": PATCH,
            },
            "num_cross_modal_pairs": layers,
            "num_labels": 7,
            "modality_type_vocab_size": 3,
            "tie_word_embeddings": False,
        }
        | settings
    )
    return fill_zeros(getattr(meter, head)(config))


def _sample(seed: int, words: int, rows: int, columns: int, images: int = 1) -> Sample:
    return random_sample(seed, words, SIDE, SIDE, images)


def _collate(samples: Sequence[Sample], text: int = 0, rows: int = 0, columns: int = 0) -> dict[str, Tensor]:
    inputs = padded_batch(samples, text)
    del inputs["pixel_mask"]
    return inputs


def _silence(model: nn.Module) -> None:
    encoder = getattr(model, "meter", model).encoder
    for layer in (*encoder.text_layers, *encoder.image_layers):
        for part in (layer, layer.attention, layer.cross_attention):
            part.layer_norm = nn.Identity()
        for linear in (layer.attention.dense, layer.cross_attention.dense, layer.output):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)


METER = Tiny(
    heads=(
        "MeterForQuestionAnswering",
        "MeterModel",
        "MeterForImageAndTextRetrieval",
        "MeterForImagesAndTextClassification",
        "MeterForMaskedLM",
    ),
    two_images=frozenset({"MeterForImagesAndTextClassification"}),
    per_word=frozenset({"MeterForMaskedLM"}),
    patch=PATCH,
    build=_build,
    sample=_sample,
    collate=_collate,
    root=lambda model: getattr(model, "meter", model),
    silence=_silence,
    states=lambda output: [
        torch.cat(pair, dim=1) for pair in zip(output.text_hidden_states, output.image_hidden_states, strict=True)
    ],
    stride=2,
    vision=True,
)
