"""Released checkpoints (csarron/PuMer on the hub, original ViLT, original METER) as transformers models.

The released models have the arithmetic of the original ones under other tensor names. A checkpoint trained with a
reduction comes back patched with `pumer.ReleasedPuMerConfig`, which computes exactly what the released code computes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from pumer.checkpoint import refuse_tensors
from pumer.conversion.family import Family, Head
from pumer.conversion.meter import METER
from pumer.conversion.vilt import VILT
from pumer.patching import patch
from pumer.reducers import ReleasedPuMerConfig
from pumer.utils.errors import InputError
from pumer.utils.tensors import not_finite

_SIMILARITY = {"mean_head": "mean_head", "mh": "mean_head", "first_head": "first_head", "fh": "first_head"}
_MERGE_STYLE = "tome"


def from_released(state_dict: Mapping[str, Tensor], config: Mapping[str, Any], task: str) -> PreTrainedModel:
    """Turn a released ViLT or METER checkpoint into a transformers model.

    Args:
        state_dict: Tensors by released name (``vilt.transformer.blocks.0.attn.qkv.weight``), or by the names of
            original ViLT, the same without ``vilt.``, or of original METER (``vit_model.visual.conv1.weight``).
        config: The released ``config.json``; what it leaves out has the released defaults. For METER,
            ``cross_modal_order`` is "parallel" if the names are the original ones, else "sequential", and
            ``image_size`` may differ from the checkpoint's: the position table is interpolated.
        task: "vqa2", "ve" (entailment: a question-answering model with 3 labels), "nlvr2", "irtr" (retrieval; METER
            before its fine-tuning will do: the ranking starts from its image-text matching) or, for METER, "mlm".

    Returns:
        The model in float32 and eval mode; patched with `ReleasedPuMerConfig` if the config has ``reduce_layers``.
        ViLT's LayerNorms have eps 1e-6, that of the text embedding has 1e-12, which ``config.text_layer_norm_eps``
        keeps and `pumer.load` restores (plain transformers does not: its text embeddings then differ by about 1e-4 of
        their size).
    """
    family = family_of(state_dict)
    if task not in family.heads:
        raise InputError(f"task {task!r} is unknown; give one of {', '.join(family.heads)}")
    head, backbone = family.heads[task], family.backbone
    config = family.defaults(state_dict) | dict(config)
    weights = family.used(state_dict, head)
    model = head.model(family.config(weights, config, head))
    backbone.restore(model)
    _fill(model, weights, family, head)
    if backbone.set_image_size is not None and (size := config.get("image_size")):
        backbone.set_image_size(model.base_model, size)
    reduced = released_reduction(config)
    if reduced is None:
        return model.eval()
    return patch(model.eval(), replace(reduced, similarity=family.similarity or reduced.similarity))


def family_of(names: Iterable[str]) -> Family:
    """The family with such tensor names, released or original."""
    return METER if any(name.startswith("meter.") or "cross_modal_" in name for name in names) else VILT


def released_reduction(config: Mapping[str, Any]) -> ReleasedPuMerConfig | None:
    """The reduction that a released ``config.json`` names, or None if it has no ``reduce_layers``."""
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


def _fill(model: PreTrainedModel, weights: Mapping[str, Tensor], family: Family, head: Head) -> None:
    """Copy every tensor to its place, or name all those that do not fit."""
    ours = model.state_dict()
    places = {name: family.released_name(name, head) for name in ours}
    filled = {name: weights[place] for name, place in places.items() if place in weights}
    for name, value in filled.items():
        for part, word in enumerate(family.fused):
            if word in name:
                filled[name] = value.chunk(3)[part]
    shapes = {name: (tuple(value.shape), tuple(ours[name].shape)) for name, value in filled.items()}
    refuse_tensors(
        f"the checkpoint for {type(model).__name__}",
        missing=set(places.values()) - set(weights),
        unexpected=set(weights) - set(places.values()),
        wrong=[f"'{places[name]}' gives {x} but '{name}' is {y}" for name, (x, y) in shapes.items() if x != y],
        not_floating_point=[places[name] for name, x in filled.items() if not x.is_floating_point()],
        not_finite=not_finite((places[name], x) for name, x in filled.items()),
    )
    model.load_state_dict(filled)
