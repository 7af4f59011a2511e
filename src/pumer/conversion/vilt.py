"""Released ViLT checkpoints (csarron/PuMer on the hub, and original ViLT): names and sizes."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import (
    ViltConfig,
    ViltForImageAndTextRetrieval,
    ViltForImagesAndTextClassification,
    ViltForQuestionAnswering,
)

from pumer.backbones.vilt import TEXT_NORM_EPS, restore_text_norm
from pumer.conversion.family import ENTAILMENT, Family, Head, labels_of, shape_of

_HEADS = {
    "vqa2": Head(ViltForQuestionAnswering, "vqa_classifier."),
    "ve": Head(ViltForQuestionAnswering, "ve_classifier.", labels=ENTAILMENT),
    "nlvr2": Head(ViltForImagesAndTextClassification, "nlvr2_classifier.", labels=("False", "True")),
    "irtr": Head(ViltForImageAndTextRetrieval, "rank_output.", ours="rank_output."),
}

# transformers' prefix to the released one; the first that fits counts
_PREFIXES = {
    "vilt.embeddings.text_embeddings.": "vilt.text_embeddings.",
    "vilt.embeddings.token_type_embeddings.": "vilt.token_type_embeddings.",
    "vilt.embeddings.cls_token": "vilt.transformer.cls_token",
    "vilt.embeddings.position_embeddings": "vilt.transformer.pos_embed",
    "vilt.embeddings.patch_embeddings.projection.": "vilt.transformer.patch_embed.proj.",
    "vilt.encoder.layer.": "vilt.transformer.blocks.",
    "vilt.layernorm.": "vilt.transformer.norm.",
}
_IN_BLOCK = {
    ".layernorm_before.": ".norm1.",
    ".layernorm_after.": ".norm2.",
    ".attention.output.dense.": ".attn.proj.",
    ".attention.attention.query.": ".attn.qkv.",
    ".attention.attention.key.": ".attn.qkv.",
    ".attention.attention.value.": ".attn.qkv.",
    ".intermediate.dense.": ".mlp.fc1.",
    ".output.dense.": ".mlp.fc2.",
}
_MATCHING = "itm_score.fc."  # scores "does not belong", "belongs": the second is where a ranking starts
_WITHOUT_USE = ("itm_score.", "mlm_score.")  # heads of the pre-training losses


def _used(state_dict: Mapping[str, Tensor], head: Head) -> dict[str, Tensor]:
    """The tensors an inference needs, under released names."""
    heads = tuple(known.released for known in _HEADS.values())
    if head is _HEADS["irtr"] and not any(name.startswith(head.released) for name in state_dict):
        matching = {name: tensor for name, tensor in state_dict.items() if name.startswith(_MATCHING)}
        ranking = {head.released + name.removeprefix(_MATCHING): tensor[1:] for name, tensor in matching.items()}
        state_dict = {**state_dict, **ranking}
    bare = not any(name.startswith("vilt.") for name in state_dict)
    return {
        f"vilt.{name}" if bare and not name.startswith(heads) else name: tensor
        for name, tensor in state_dict.items()
        if not name.endswith(".position_ids") and not name.startswith(_WITHOUT_USE)
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
        num_images=2 if head.model is ViltForImagesAndTextClassification else -1,
        **labels_of(weights, head),
        **{TEXT_NORM_EPS: 1e-12},
    )


def _released_name(name: str, head: Head) -> str:
    """Released name of a tensor of the transformers class."""
    if name.startswith(head.ours):
        return head.released + name.removeprefix(head.ours)
    for ours, released in _PREFIXES.items():
        if name.startswith(ours):
            name = released + name.removeprefix(ours)
            break
    for ours, released in _IN_BLOCK.items():
        if name.startswith("vilt.transformer.blocks.") and ours in name:
            return name.replace(ours, released)
    return name


VILT = Family(
    heads=_HEADS,
    used=_used,
    config=_config,
    released_name=_released_name,
    fused=(".query.", ".key.", ".value."),
    prepare=restore_text_norm,
)
