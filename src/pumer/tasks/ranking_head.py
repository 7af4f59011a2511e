"""Starting a retrieval model from a checkpoint, which may score pairs already, or match them, or answer questions."""

import logging
from collections.abc import Mapping

import torch
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import cached_file

from pumer.backbones.text_norm import restore_text_norm
from pumer.checkpoint import HEADS_FILE, model_class
from pumer.errors import InputError
from pumer.utils.files import first_line

logger = logging.getLogger(__name__)

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
    model_class(checkpoint)  # names a missing or broken checkpoint
    config = AutoConfig.from_pretrained(checkpoint)
    if config.model_type not in models:
        allowed = " or ".join(f"'{name}'" for name in models)
        raise InputError(f"checkpoint {checkpoint} is a '{config.model_type}' model; this task needs {allowed}")
    config.num_labels = 1
    try:
        model, loaded = models[config.model_type].from_pretrained(
            checkpoint, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"the weights of {checkpoint} cannot be loaded: {first_line(error)}") from error
    restore_text_norm(model)
    if any(name.startswith("rank_output.") for name in loaded["missing_keys"]):
        matched = _start_from_matching(model, checkpoint)
        logger.info("ranking layer: starts %s", "from image-text matching" if matched else "at random")
    return model


def _start_from_matching(model: PreTrainedModel, checkpoint: str) -> bool:
    """Fill the ranking layer from the checkpoint's matching layer; False where it has none."""
    for file in ("model.safetensors", HEADS_FILE):
        path = cached_file(checkpoint, file, _raise_exceptions_for_missing_entries=False)
        if path is None:
            continue
        with safe_open(path, "pt") as tensors, torch.no_grad():
            if f"{_MATCHING}.weight" in tensors.keys():  # noqa: SIM118 (no dict)
                for name in ("weight", "bias"):
                    getattr(model.rank_output, name).copy_(tensors.get_tensor(f"{_MATCHING}.{name}")[1:])
                return True
    return False
