"""Released METER checkpoints (csarron/PuMer on the hub, and those of METER's authors): names and sizes.

The originals have the names of the released ones without ``meter.``, and ``vit_model.visual.`` for ``vit_model.``. They
run the two layers of a pair in parallel; the released ones give the text layer's output to the image layer.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from pumer.conversion.family import ENTAILMENT, Family, Head, labels_of, shape_of
from pumer.models.meter import (
    MeterConfig,
    MeterForImageAndTextRetrieval,
    MeterForImagesAndTextClassification,
    MeterForMaskedLM,
    MeterForQuestionAnswering,
)
from pumer.utils.errors import InputError

_HEADS = {
    "vqa2": Head(MeterForQuestionAnswering, "vqa_classifier."),
    "ve": Head(MeterForQuestionAnswering, "ve_classifier.", labels=ENTAILMENT),
    "nlvr2": Head(MeterForImagesAndTextClassification, "nlvr2_classifier.", labels=("False", "True")),
    "irtr": Head(MeterForImageAndTextRetrieval, "rank_output.", ours="rank_output."),
    "mlm": Head(MeterForMaskedLM, "mlm_score.", ours="mlm_score."),
}
_MATCHING = "itm_score.fc."  # scores "does not belong", "belongs": the second is where a ranking starts
_HEAD_NAMES = (*(head.released for head in _HEADS.values()), "itm_score.")

# ours to released; the first that fits counts
_PREFIXES = {
    "meter.text_model.": "meter.text_transformer.",
    "meter.vision_model.embeddings.class_embedding": "meter.vit_model.class_embedding",
    "meter.vision_model.embeddings.patch_embedding.": "meter.vit_model.conv1.",
    "meter.vision_model.embeddings.position_embedding.weight": "meter.vit_model.positional_embedding",
    "meter.vision_model.pre_layrnorm.": "meter.vit_model.ln_pre.",
    "meter.vision_model.post_layernorm.": "meter.vit_model.ln_post.",
    "meter.vision_model.encoder.layers.": "meter.vit_model.transformer.resblocks.",
    "meter.text_projection.": "meter.cross_modal_text_transform.",
    "meter.image_projection.": "meter.cross_modal_image_transform.",
    "meter.modality_embeddings.": "meter.token_type_embeddings.",
    "meter.encoder.text_layers.": "meter.cross_modal_text_layers.",
    "meter.encoder.image_layers.": "meter.cross_modal_image_layers.",
    "meter.text_pooler.": "meter.cross_modal_text_pooler.",
    "meter.image_pooler.": "meter.cross_modal_image_pooler.",
    "mlm_score.dense.": "mlm_score.transform.dense.",
    "mlm_score.layer_norm.": "mlm_score.transform.LayerNorm.",
    "mlm_score.decoder.bias": "mlm_score.bias",
}
_IN_VISION_BLOCK = {
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".self_attn.q_proj.": ".attn.in_proj_",
    ".self_attn.k_proj.": ".attn.in_proj_",
    ".self_attn.v_proj.": ".attn.in_proj_",
}
_IN_ATTENTION = {
    ".query.": ".self.query.",
    ".key.": ".self.key.",
    ".value.": ".self.value.",
    ".dense.": ".output.dense.",
    ".layer_norm.": ".output.LayerNorm.",
}
_IN_CROSS_MODAL_LAYER = {
    ".intermediate.": ".intermediate.dense.",
    ".output.": ".output.dense.",
    ".layer_norm.": ".output.LayerNorm.",
}

_TEXT_LAYERS, _IMAGE_LAYERS = "meter.cross_modal_text_layers.", "meter.cross_modal_image_layers."
_VISION_BLOCKS = "meter.vit_model.transformer.resblocks."
_WITHOUT_USE = (
    "meter.text_transformer.pooler.",
    "meter.text_transformer.embeddings.position_ids",
    "meter.vit_model.proj",
    # CLIP's text tower
    "meter.vit_model.token_embedding.",
    "meter.vit_model.text.",
    "meter.vit_model.ln_final.",
    "meter.vit_model.text_projection",
    "meter.vit_model.logit_scale",
)


def _used(state_dict: Mapping[str, Tensor], head: Head) -> dict[str, Tensor]:
    """The tensors an inference needs, under released names."""
    weights = _renamed(state_dict)
    if "meter.vit_model.proj" in weights:  # all of CLIP, whose last block METER leaves out
        last = f"{_VISION_BLOCKS}{_count(weights, _VISION_BLOCKS) - 1}."
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(last)}
    if head is _HEADS["irtr"] and not any(name.startswith(head.released) for name in weights):
        weights |= {
            head.released + name.removeprefix(_MATCHING): tensor[1:]
            for name, tensor in weights.items()
            if name.startswith(_MATCHING)
        }
    unwanted = (*_WITHOUT_USE, *{*_HEAD_NAMES} - {head.released})
    return {name: tensor for name, tensor in weights.items() if not name.startswith(unwanted)}


def _renamed(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of an original checkpoint as released ones; those of a released checkpoint as they are."""
    renamed = {}
    bare = _is_original(state_dict)
    towers = any(name.startswith("vit_model.visual.") for name in state_dict)
    for name, tensor in state_dict.items():
        name = name.replace("snli_classifier.", "ve_classifier.", 1)
        if towers and name.startswith("vit_model."):
            image = name.startswith("vit_model.visual.")
            name = name.replace("visual.", "", 1) if image else _text_tower(name)
        renamed[f"meter.{name}" if bare and not name.startswith(_HEAD_NAMES) else name] = tensor
    return renamed


def _text_tower(name: str) -> str:
    """CLIP gives its text tower names that METER's released code gives the image tower."""
    same = ("vit_model.positional_embedding", "vit_model.transformer.")
    return name.replace("vit_model.", "vit_model.text.", 1) if name.startswith(same) else name


def is_meter(names: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a METER checkpoint, released or original."""
    return any(name.startswith("meter.") or "cross_modal_" in name for name in names)


def _is_original(names: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of METER's authors."""
    return not any(name.startswith("meter.") for name in names)


def _defaults(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"cross_modal_order": "parallel" if _is_original(state_dict) else "sequential"}


def _config(weights: Mapping[str, Tensor], config: Mapping[str, Any], head: Head) -> MeterConfig:
    """Sizes from the tensors themselves, the rest from the released config and its defaults."""
    tokenizer = str(config.get("tokenizer", "roberta-base"))
    if "roberta" not in tokenizer:
        raise InputError(f"the text encoder '{tokenizer}' is not supported; METER checkpoints with RoBERTa are")
    hidden = shape_of(weights, "meter.cross_modal_text_transform.weight")[0]
    heads = config.get("num_heads") or hidden // 64
    dropout = config.get("drop_rate", 0.1)
    guesses = head is _HEADS["mlm"]
    return MeterConfig(
        text_config=_text_config(weights, hidden, heads),
        vision_config=_vision_config(weights, hidden, heads),
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=shape_of(weights, f"{_TEXT_LAYERS}0.intermediate.dense.weight")[0],
        num_cross_modal_pairs=_count(weights, _TEXT_LAYERS),
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        cross_modal_order=config["cross_modal_order"],
        modality_type_vocab_size=shape_of(weights, "meter.token_type_embeddings.weight")[0],
        tie_word_embeddings=not guesses,  # the originals learn a decoder of its own
        **({} if guesses else labels_of(weights, head)),
    )


def _text_config(weights: Mapping[str, Tensor], hidden: int, heads: int) -> dict[str, Any]:
    embeddings, layers = "meter.text_transformer.embeddings.", "meter.text_transformer.encoder.layer."
    words, width = shape_of(weights, f"{embeddings}word_embeddings.weight")
    return {
        "vocab_size": words,
        "hidden_size": width,
        "max_position_embeddings": shape_of(weights, f"{embeddings}position_embeddings.weight")[0],
        "type_vocab_size": shape_of(weights, f"{embeddings}token_type_embeddings.weight")[0],
        "intermediate_size": shape_of(weights, f"{layers}0.intermediate.dense.weight")[0],
        "num_hidden_layers": _count(weights, layers),
        "num_attention_heads": _heads(width, hidden, heads),
    }


def _vision_config(weights: Mapping[str, Tensor], hidden: int, heads: int) -> dict[str, Any]:
    width, channels, patch_size, _ = shape_of(weights, "meter.vit_model.conv1.weight")
    side = round((shape_of(weights, "meter.vit_model.positional_embedding")[0] - 1) ** 0.5)
    return {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch_size,
        "image_size": side * patch_size,
        "intermediate_size": shape_of(weights, f"{_VISION_BLOCKS}0.mlp.c_fc.weight")[0],
        "num_hidden_layers": _count(weights, _VISION_BLOCKS),
        "num_attention_heads": _heads(width, hidden, heads),
    }


def _heads(width: int, hidden: int, heads: int) -> int:
    """Heads of a uni-modal encoder: those of the cross-modal layers, or of width 64 if it is wider or narrower."""
    return heads if width == hidden else width // 64


def _count(names: Mapping[str, Tensor], prefix: str) -> int:
    """Layers under a prefix, by the highest number; one that is missing in between is named later."""
    numbers = [int(name.removeprefix(prefix).split(".")[0]) for name in names if name.startswith(prefix)]
    return max(numbers, default=-1) + 1


def _released_name(name: str, head: Head) -> str:
    """Released name of a tensor of our class."""
    for ours, released in _PREFIXES.items():
        if name.startswith(ours):
            name = released + name.removeprefix(ours)
            break
    else:
        return head.released + name.removeprefix(head.ours) if name.startswith(head.ours) else name
    if name.startswith(_VISION_BLOCKS):
        return _replaced(name, _IN_VISION_BLOCK)
    if name.startswith((_TEXT_LAYERS, _IMAGE_LAYERS)):
        name = name.replace(".cross_attention.", ".crossattention.")
        return _replaced(name, _IN_ATTENTION if "attention." in name else _IN_CROSS_MODAL_LAYER)
    return name


def _replaced(name: str, words: Mapping[str, str]) -> str:
    """The name with the first word that occurs in it replaced."""
    for ours, released in words.items():
        if ours in name:
            return name.replace(ours, released)
    return name


def _finish(model: PreTrainedModel, config: Mapping[str, Any]) -> None:
    """Read images of the size that the released config names."""
    model.base_model.set_image_size(config.get("image_size") or model.config.image_size)


METER = Family(
    heads=_HEADS,
    used=_used,
    config=_config,
    released_name=_released_name,
    fused=(".q_proj.", ".k_proj.", ".v_proj."),
    similarity="mean_head",
    defaults=_defaults,
    finish=_finish,
)
