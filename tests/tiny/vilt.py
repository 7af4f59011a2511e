"""Tiny ViLT models, which take images of any size, and batches for them."""

import torch
import transformers
from torch import nn

from tiny.base import PATCH, WORDS, Tiny, fill_zeros, padded_batch, random_sample


def _build(head: str = "ViltForQuestionAnswering", layers: int = 3, seed: int = 0, **settings) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.ViltConfig(
        **{
            "hidden_size": 32,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "vocab_size": WORDS,
            "image_size": 6 * PATCH,
            "patch_size": PATCH,
            "initializer_range": 0.2,
            "max_position_embeddings": 40,
            "num_labels": 7,
            "modality_type_vocab_size": 3,
            "num_images": 2,
            "tie_word_embeddings": False,
        }
        | settings
    )
    return fill_zeros(getattr(transformers, head)(config))


def _root(model: nn.Module) -> nn.Module:
    return getattr(model, "vilt", model)


def _silence(model: nn.Module) -> None:
    for layer in _root(model).encoder.layer:
        for linear in (layer.attention.output.dense, layer.output.dense):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)


VILT = Tiny(
    heads=(
        "ViltForQuestionAnswering",
        "ViltModel",
        "ViltForImageAndTextRetrieval",
        "ViltForImagesAndTextClassification",
        "ViltForMaskedLM",
        "ViltForTokenClassification",
    ),
    two_images=frozenset({"ViltForImagesAndTextClassification"}),
    per_word=frozenset({"ViltForMaskedLM", "ViltForTokenClassification"}),
    patch=PATCH,
    build=_build,
    sample=random_sample,
    collate=padded_batch,
    root=_root,
    silence=_silence,
    states=lambda output: output.hidden_states,
)
