"""Starting a retrieval model from a checkpoint, which may score pairs already, or match them, or answer questions."""

import logging
from collections.abc import Mapping

import torch
from transformers import AutoConfig, PreTrainedModel

from pumer.checkpoint import HEADS_FILE, WEIGHTS_FILE, check_tensors, model_class, read_model, read_tensors
from pumer.utils.errors import InputError

logger = logging.getLogger(__name__)

_RANKING = "rank_output"
_MATCHING = "itm_score.fc"  # scores "does not belong", "belongs": the second is where a ranking starts


def ranking_from(checkpoint: str, models: Mapping[str, type[PreTrainedModel]]) -> PreTrainedModel:
    """A model with a `rank_output`, a linear layer from what is pooled to one score.

    It keeps the checkpoint's, or starts as the second row of its `itm_score.fc` (image-text matching, from
    pre-training; in its weights or in HEADS_FILE beside them), or at random from torch's global generator.

    Args:
        checkpoint: local directory or hub name.
        models: model classes by the `model_type`s that are allowed.

    Raises:
        InputError: when the checkpoint cannot be read or is of another model type.
    """
    saved_as = model_class(checkpoint)
    config = AutoConfig.from_pretrained(checkpoint)
    if config.model_type not in models:
        allowed = " or ".join(f"'{name}'" for name in models)
        raise InputError(f"checkpoint {checkpoint} is a '{config.model_type}' model; this task needs {allowed}")
    config.num_labels = 1
    cls = models[config.model_type]
    model, absent = read_model(cls, checkpoint, head=saved_as is cls, config=config, dtype=torch.float32)
    if poolers := sorted(absent - {_RANKING}):
        logger.info("%s has no %s: it starts at random", checkpoint, " and no ".join(poolers))
    if _RANKING in absent:
        matched = _start_from_matching(model, checkpoint)
        logger.info("ranking layer: starts %s", "from image-text matching" if matched else "at random")
    return model


def _start_from_matching(model: PreTrainedModel, checkpoint: str) -> bool:
    """Fill the ranking layer from the checkpoint's matching layer; False where it has none."""
    for file in (WEIGHTS_FILE, HEADS_FILE):
        tensors = read_tensors(checkpoint, file, lambda name: name.startswith(f"{_MATCHING}."))
        if not tensors:
            continue
        own = {f"{_MATCHING}.{name}": tensor for name, tensor in model.rank_output.named_parameters()}
        pairs = {name: tensor.new_zeros(2, *tensor.shape[1:]) for name, tensor in own.items()}
        check_tensors(f"{checkpoint} ({file})", tensors, pairs)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name][1:])
        return True
    return False
