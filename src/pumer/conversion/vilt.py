"""Released ViLT checkpoints (csarron/PuMer on the hub, and original ViLT): names and sizes."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import ViltConfig

from pumer.backbones.vilt import TEXT_NORM_EPS
from pumer.backbones.vilt import VILT as BACKBONE
from pumer.conversion.family import Family, Head, labels_of, shape_of, task_heads

_HEADS = task_heads(BACKBONE)
_NAMES = {
    r"^vilt\.embeddings\.(text_embeddings|token_type_embeddings)\.": r"vilt.\1.",
    r"^vilt\.embeddings\.cls_token": "vilt.transformer.cls_token",
    r"^vilt\.embeddings\.position_embeddings": "vilt.transformer.pos_embed",
    r"^vilt\.embeddings\.patch_embeddings\.projection\.": "vilt.transformer.patch_embed.proj.",
    r"^vilt\.layernorm\.": "vilt.transformer.norm.",
    r"^vilt\.encoder\.layer\.(\d+)\.layernorm_before\.": r"vilt.transformer.blocks.\1.norm1.",
    r"^vilt\.encoder\.layer\.(\d+)\.layernorm_after\.": r"vilt.transformer.blocks.\1.norm2.",
    r"^vilt\.encoder\.layer\.(\d+)\.attention\.output\.dense\.": r"vilt.transformer.blocks.\1.attn.proj.",
    r"^vilt\.encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.": r"vilt.transformer.blocks.\1.attn.qkv.",
    r"^vilt\.encoder\.layer\.(\d+)\.intermediate\.dense\.": r"vilt.transformer.blocks.\1.mlp.fc1.",
    r"^vilt\.encoder\.layer\.(\d+)\.output\.dense\.": r"vilt.transformer.blocks.\1.mlp.fc2.",
}
"""Patterns of transformers' names to the released ones."""


def _renamed(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of an original checkpoint under released names; buffers are left out."""
    whole = (*(head.released for head in _HEADS.values()), "itm_score.", "mlm_score.")
    bare = not any(name.startswith("vilt.") for name in state_dict)
    return {
        f"vilt.{name}" if bare and not name.startswith(whole) else name: x
        for name, x in state_dict.items()
        if not name.endswith(".position_ids")
    }


def _config(weights: Mapping[str, Tensor], config: Mapping[str, Any], head: Head) -> ViltConfig:
    """Sizes from the tensors themselves, the rest from the released config and its defaults."""
    width, channels, patch_size, _ = shape_of(weights, "vilt.transformer.patch_embed.proj.weight")
    side = round((shape_of(weights, "vilt.transformer.pos_embed")[1] - 1) ** 0.5)
    return ViltConfig(
        vocab_size=shape_of(weights, "vilt.text_embeddings.word_embeddings.weight")[0],
        max_position_embeddings=shape_of(weights, "vilt.text_embeddings.position_embeddings.weight")[0],
        type_vocab_size=shape_of(weights, "vilt.text_embeddings.token_type_embeddings.weight")[0],
        modality_type_vocab_size=shape_of(weights, "vilt.token_type_embeddings.weight")[0],
        intermediate_size=shape_of(weights, "vilt.transformer.blocks.0.mlp.fc1.weight")[0],
        hidden_size=width,
        num_channels=channels,
        patch_size=patch_size,
        image_size=side * patch_size,
        num_hidden_layers=config.get("num_layers", 12),
        num_attention_heads=config.get("num_heads", 12),
        hidden_dropout_prob=config.get("drop_rate", 0.1),
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-6,
        pad_token_id=0,
        num_images=2 if head is _HEADS["nlvr2"] else -1,
        **labels_of(weights, head),
        **{TEXT_NORM_EPS: 1e-12},
    )


VILT = Family(
    backbone=BACKBONE,
    heads=_HEADS,
    renamed=_renamed,
    unused=("itm_score.", "mlm_score."),  # heads of the pre-training losses
    names=_NAMES,
    config=_config,
    fused=(".query.", ".key.", ".value."),
    tokenizer="bert-base-uncased",
)
