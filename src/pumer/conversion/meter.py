"""Released METER checkpoints (csarron/PuMer on the hub, and those of METER's authors): names and sizes.

The originals have the names of the released ones without ``meter.``, and ``vit_model.visual.`` for ``vit_model.``. They
run the two layers of a pair in parallel; the released ones give the text layer's output to the image layer.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pumer.backbones.meter import METER as BACKBONE
from pumer.conversion.family import Family, Head, labels_of, shape_of, task_heads
from pumer.models.meter import MeterConfig, MeterForMaskedLM
from pumer.utils.errors import InputError

_HEADS = task_heads(BACKBONE) | {"mlm": Head(MeterForMaskedLM, "mlm_score.", ours="mlm_score.")}
_TEXT_LAYERS, _VISION_BLOCKS = "meter.cross_modal_text_layers.", "meter.vit_model.transformer.resblocks."
_BLOCK, _LAYER, _ATTENTION = r"(\.resblocks\.\d+)\.", r"(_layers\.\d+)\.", r"(_layers\.\d+\.(?:cross)?attention)\."
_NAMES = {
    r"^meter\.text_model\.": "meter.text_transformer.",
    r"^meter\.vision_model\.embeddings\.class_embedding": "meter.vit_model.class_embedding",
    r"^meter\.vision_model\.embeddings\.patch_embedding\.": "meter.vit_model.conv1.",
    r"^meter\.vision_model\.embeddings\.position_embedding\.weight": "meter.vit_model.positional_embedding",
    r"^meter\.vision_model\.pre_layrnorm\.": "meter.vit_model.ln_pre.",
    r"^meter\.vision_model\.post_layernorm\.": "meter.vit_model.ln_post.",
    r"^meter\.vision_model\.encoder\.layers\.": _VISION_BLOCKS,
    rf"{_BLOCK}layer_norm([12])\.": r"\1.ln_\2.",
    rf"{_BLOCK}mlp\.fc1\.": r"\1.mlp.c_fc.",
    rf"{_BLOCK}mlp\.fc2\.": r"\1.mlp.c_proj.",
    rf"{_BLOCK}self_attn\.out_proj\.": r"\1.attn.out_proj.",
    rf"{_BLOCK}self_attn\.[qkv]_proj\.": r"\1.attn.in_proj_",
    r"^meter\.(text|image)_projection\.": r"meter.cross_modal_\1_transform.",
    r"^meter\.modality_embeddings\.": "meter.token_type_embeddings.",
    r"^meter\.(text|image)_pooler\.": r"meter.cross_modal_\1_pooler.",
    r"^meter\.encoder\.(text|image)_layers\.": r"meter.cross_modal_\1_layers.",
    rf"{_LAYER}cross_attention\.": r"\1.crossattention.",
    rf"{_ATTENTION}(query|key|value)\.": r"\1.self.\2.",
    rf"{_ATTENTION}dense\.": r"\1.output.dense.",
    rf"{_ATTENTION}layer_norm\.": r"\1.output.LayerNorm.",
    rf"{_LAYER}(intermediate|output)\.": r"\1.\2.dense.",
    rf"{_LAYER}layer_norm\.": r"\1.output.LayerNorm.",
    r"^mlm_score\.dense\.": "mlm_score.transform.dense.",
    r"^mlm_score\.layer_norm\.": "mlm_score.transform.LayerNorm.",
    r"^mlm_score\.decoder\.bias": "mlm_score.bias",
}
"""Patterns of our names to the released ones."""
_UNUSED = (
    "itm_score.",
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


def _renamed(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of an original checkpoint under released names; of all of CLIP, the last block is left out."""
    weights, whole = {}, (*(head.released for head in _HEADS.values()), "itm_score.")
    bare, towers = _is_original(state_dict), any(name.startswith("vit_model.visual.") for name in state_dict)
    for name, tensor in state_dict.items():
        name = name.replace("snli_classifier.", "ve_classifier.", 1)
        if towers and name.startswith("vit_model.visual."):
            name = name.replace("visual.", "", 1)
        elif towers and name.startswith(("vit_model.positional_embedding", "vit_model.transformer.")):
            name = name.replace("vit_model.", "vit_model.text.", 1)  # CLIP's text tower has the released image names
        weights[f"meter.{name}" if bare and not name.startswith(whole) else name] = tensor
    if "meter.vit_model.proj" in weights:
        last = f"{_VISION_BLOCKS}{_count(weights, _VISION_BLOCKS) - 1}."
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(last)}
    return weights


def _is_original(names: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of METER's authors."""
    return not any(name.startswith("meter.") for name in names)


def _config(weights: Mapping[str, Tensor], config: Mapping[str, Any], head: Head) -> MeterConfig:
    """Sizes from the tensors themselves, the rest from the released config and its defaults."""
    if "roberta" not in (tokenizer := str(config.get("tokenizer", "roberta-base"))):
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
        "max_position_embeddings": shape_of(weights, f"{embeddings}position_embeddings.weight")[0],
        "type_vocab_size": shape_of(weights, f"{embeddings}token_type_embeddings.weight")[0],
        "intermediate_size": shape_of(weights, f"{layers}0.intermediate.dense.weight")[0],
        "num_hidden_layers": _count(weights, layers),
        **_width(width, hidden, heads),
    }


def _vision_config(weights: Mapping[str, Tensor], hidden: int, heads: int) -> dict[str, Any]:
    width, channels, patch_size, _ = shape_of(weights, "meter.vit_model.conv1.weight")
    side = round((shape_of(weights, "meter.vit_model.positional_embedding")[0] - 1) ** 0.5)
    return {
        "num_channels": channels,
        "patch_size": patch_size,
        "image_size": side * patch_size,
        "intermediate_size": shape_of(weights, f"{_VISION_BLOCKS}0.mlp.c_fc.weight")[0],
        "num_hidden_layers": _count(weights, _VISION_BLOCKS),
        **_width(width, hidden, heads),
    }


def _width(width: int, hidden: int, heads: int) -> dict[str, int]:
    """Width and heads of a uni-modal encoder: the cross-modal layers' heads, or heads of 64 at another width."""
    return {"hidden_size": width, "num_attention_heads": heads if width == hidden else width // 64}


def _count(names: Mapping[str, Tensor], prefix: str) -> int:
    """Layers under a prefix, by the highest number; one that is missing in between is named later."""
    numbers = [int(name.removeprefix(prefix).split(".")[0]) for name in names if name.startswith(prefix)]
    return max(numbers, default=-1) + 1


METER = Family(
    backbone=BACKBONE,
    heads=_HEADS,
    renamed=_renamed,
    unused=_UNUSED,
    names=_NAMES,
    config=_config,
    fused=(".q_proj.", ".k_proj.", ".v_proj."),
    tokenizer="roberta-base",
    similarity="mean_head",
    defaults=lambda names: {"cross_modal_order": "parallel" if _is_original(names) else "sequential"},
)
