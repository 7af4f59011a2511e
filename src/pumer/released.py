"""Released checkpoints (csarron/PuMer on the hub, and original ViLT) as transformers models.

The released models have the arithmetic of the original ViLT under other tensor names; here every tensor finds its place
in the transformers class of its task. A checkpoint that was trained with a reduction comes back patched with
`pumer.ReleasedPuMerConfig`, which computes exactly what the released code computes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    ViltConfig,
    ViltForImageAndTextRetrieval,
    ViltForImagesAndTextClassification,
    ViltForQuestionAnswering,
)

from pumer.backbones.text_norm import TEXT_NORM_EPS, restore_text_norm
from pumer.errors import InputError
from pumer.patching import patch
from pumer.reducers import ReleasedPuMerConfig
from pumer.sources import some


@dataclass(frozen=True)
class Head:
    """How a task's head is called there and here.

    Attributes:
        model: The transformers class.
        released: Prefix of the head's tensors in a released checkpoint.
        ours: Their prefix in the transformers class.
        labels: Meaning of the logits' columns where it is fixed.
    """

    model: type[PreTrainedModel]
    released: str
    ours: str = "classifier."
    labels: tuple[str, ...] = ()


HEADS: dict[str, Head] = {
    "vqa2": Head(ViltForQuestionAnswering, "vqa_classifier."),
    "ve": Head(ViltForQuestionAnswering, "ve_classifier.", labels=("contradiction", "neutral", "entailment")),
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
_FUSED = (".query.", ".key.", ".value.")  # order of the rows of the released qkv tensors

_WITHOUT_USE = ("itm_score.", "mlm_score.")  # heads of the pre-training losses
_SIMILARITY = {
    "mean_head": "mean_head",
    "mh": "mean_head",
    "first_head": "first_head",
    "fh": "first_head",
}
_MERGE_STYLE = "tome"


def from_released(state_dict: Mapping[str, Tensor], config: Mapping[str, Any], task: str) -> PreTrainedModel:
    """Turn a released ViLT checkpoint into a transformers model.

    Args:
        state_dict: Released tensors by released name (``vilt.transformer.blocks.0.attn.qkv.weight``); the names of
            original ViLT, the same without ``vilt.``, will do as well.
        config: The released ``config.json`` as a dict; what it leaves out has the released defaults.
        task: "vqa2", "ve" (entailment: a question-answering model with 3 labels), "nlvr2" or "irtr" (retrieval).

    Returns:
        The model in float32 and eval mode; patched with `ReleasedPuMerConfig` if the config has ``reduce_layers``, else
        unpatched. LayerNorms have eps 1e-6, that of the text embedding has 1e-12. transformers knows one eps only:
        ``config.layer_norm_eps`` is 1e-6, ``config.text_layer_norm_eps`` remembers the other and `pumer.load` restores
        it (plain transformers does not: its text embeddings then differ by about 1e-4 of their size).

    Raises:
        InputError: For an unknown task, a METER checkpoint, a reduction this library does not know, and for tensors
            that are missing, unexpected or of a wrong shape; it names them.
    """
    if task not in HEADS:
        raise InputError(f"task {task!r} is unknown; give one of {', '.join(HEADS)}")
    _refuse_meter(state_dict, config)
    head = HEADS[task]
    weights = _used(state_dict)
    model = head.model(_vilt_config(weights, config, head))
    restore_text_norm(model)
    _fill(model, weights, head)
    reduced = released_reduction(config)
    return model.eval() if reduced is None else patch(model.eval(), reduced)


def released_reduction(config: Mapping[str, Any]) -> ReleasedPuMerConfig | None:
    """The reduction that a released ``config.json`` names, or None if it has no ``reduce_layers``.

    Args:
        config: ``reduce_layers``, ``prune_r``, ``merge_r``, ``merge_text`` (fractions removed), ``sim_method``,
            ``merge_style``.

    Raises:
        InputError: For a ``sim_method`` or ``merge_style`` that no published checkpoint has.
    """
    layers = config.get("reduce_layers")
    if not layers:
        return None
    similarity, style = config.get("sim_method", "mean_head"), config.get("merge_style", _MERGE_STYLE)
    if similarity not in _SIMILARITY:
        raise InputError(f"sim_method {similarity!r} is not supported; allowed: {', '.join(_SIMILARITY)}")
    if style != _MERGE_STYLE:
        raise InputError(f"merge_style {style!r} is not supported; allowed: {_MERGE_STYLE}")
    return ReleasedPuMerConfig(
        layers=tuple(layers),
        prune_ratio=config.get("prune_r") or 0.0,
        merge_ratio=config.get("merge_r") or 0.0,
        text_merge_ratio=config.get("merge_text") or 0.0,
        similarity=_SIMILARITY[similarity],  # type: ignore[arg-type]
    )


def _refuse_meter(names: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    meter = any(name.startswith("meter.") or "cross_modal_" in name for name in names)
    if meter or config.get("model_type") == "meter":
        raise InputError("METER checkpoints cannot be converted yet; ViLT checkpoints can")


def _used(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors an inference needs, under released names."""
    heads = tuple(head.released for head in HEADS.values())
    bare = not any(name.startswith("vilt.") for name in state_dict)
    return {
        f"vilt.{name}" if bare and not name.startswith(heads) else name: tensor
        for name, tensor in state_dict.items()
        if not name.endswith(".position_ids") and not name.startswith(_WITHOUT_USE)
    }


def _vilt_config(weights: Mapping[str, Tensor], config: Mapping[str, Any], head: Head) -> ViltConfig:
    """Sizes from the tensors themselves, the rest from the released config and its defaults."""

    def shape(name: str) -> torch.Size:
        if name not in weights:
            raise InputError(f"tensor '{name}' is missing in the checkpoint")
        return weights[name].shape

    width, channels, patch_size, _ = shape("vilt.transformer.patch_embed.proj.weight")
    side = round((shape("vilt.transformer.pos_embed")[1] - 1) ** 0.5)
    last = max((name for name in weights if name.startswith(head.released)), default=f"{head.released}weight")
    outputs = shape(last)[0]
    labels = head.labels or tuple(f"LABEL_{index}" for index in range(outputs))
    if len(labels) != outputs:
        raise InputError(f"'{last}' has {outputs} outputs, but the task has {len(labels)} labels")
    dropout = config.get("drop_rate", 0.1)
    return ViltConfig(
        vocab_size=shape("vilt.text_embeddings.word_embeddings.weight")[0],
        max_position_embeddings=shape("vilt.text_embeddings.position_embeddings.weight")[0],
        type_vocab_size=shape("vilt.text_embeddings.token_type_embeddings.weight")[0],
        modality_type_vocab_size=shape("vilt.token_type_embeddings.weight")[0],
        intermediate_size=shape("vilt.transformer.blocks.0.mlp.fc1.weight")[0],
        hidden_size=width,
        num_channels=channels,
        patch_size=patch_size,
        image_size=side * patch_size,
        num_hidden_layers=config.get("num_layers", 12),
        num_attention_heads=config.get("num_heads", 12),
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-6,
        pad_token_id=0,
        num_images=2 if head.model is ViltForImagesAndTextClassification else -1,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        **{TEXT_NORM_EPS: 1e-12},
    )


def _fill(model: PreTrainedModel, weights: Mapping[str, Tensor], head: Head) -> None:
    """Copy every tensor to its place, or name those that do not fit."""
    ours = model.state_dict()
    places = {name: _released_name(name, head) for name in ours}
    missing = sorted(set(places.values()) - set(weights))
    unexpected = sorted(set(weights) - set(places.values()))
    if missing or unexpected:
        said = [
            f"{word} {some(names)}" for word, names in (("missing:", missing), ("unexpected:", unexpected)) if names
        ]
        raise InputError(f"the tensors of the checkpoint do not fit {type(model).__name__}; {'; '.join(said)}")
    filled = {}
    for name, tensor in ours.items():
        value = weights[places[name]]
        for part, word in enumerate(_FUSED):
            if word in name:
                value = value.chunk(3)[part]
        if value.shape != tensor.shape:
            raise InputError(
                f"tensor '{places[name]}' gives {tuple(value.shape)} but {tuple(tensor.shape)} is expected for '{name}'"
            )
        filled[name] = value
    model.load_state_dict(filled)


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
