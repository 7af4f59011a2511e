"""Starting a task's model from a checkpoint, whose head may know other labels or none."""

import logging
from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForVisualQuestionAnswering, PreTrainedModel

from pumer.errors import InputError

logger = logging.getLogger(__name__)


def question_answering_model(
    checkpoint: str, labels: Sequence[str], task: str, backbones: Sequence[str]
) -> PreTrainedModel:
    """A question-answering model whose last layer has one row per label.

    Rows of labels that the checkpoint's head knows keep their weights; the rest of the last layer, and the
    whole head where the checkpoint has none, is initialised at random from torch's global generator.

    Args:
        checkpoint: local directory or hub name.
        labels: meaning of the logits' columns.
        task: name of the task, for messages.
        backbones: transformers `model_type`s that are allowed.

    Raises:
        InputError: when the checkpoint cannot be read or is of another model type.
    """
    try:
        config = AutoConfig.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise InputError(f"checkpoint {checkpoint} cannot be read: {str(error).splitlines()[0]}") from error
    if config.model_type not in backbones:
        allowed = " or ".join(backbones)
        raise InputError(f"checkpoint {checkpoint} is a '{config.model_type}' model; {task} needs {allowed}")
    has_head = any(name.endswith("ForQuestionAnswering") for name in config.architectures or ())
    known = [config.id2label[index] for index in range(config.num_labels)] if has_head else []
    if known != list(labels) and not has_head:
        config.num_labels = len(labels)
    try:
        model = AutoModelForVisualQuestionAnswering.from_pretrained(checkpoint, config=config, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"weights of {checkpoint} cannot be read: {str(error).splitlines()[0]}") from error
    if known != list(labels):
        _relabel(model, known, labels)
    return model


def _relabel(model: PreTrainedModel, known: Sequence[str], labels: Sequence[str]) -> None:
    """Give the model's last layer one row per label, keeping the rows of labels it knows."""
    old = model.classifier[-1]
    new = nn.Linear(old.in_features, len(labels))
    nn.init.normal_(new.weight, std=model.config.initializer_range)
    nn.init.zeros_(new.bias)
    row = {label: index for index, label in enumerate(known)}
    kept = [(index, row[label]) for index, label in enumerate(labels) if label in row]
    with torch.no_grad():
        for target, source in kept:
            new.weight[target] = old.weight[source]
            new.bias[target] = old.bias[source]
    model.classifier[-1] = new
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: index for index, label in enumerate(labels)}
    logger.info(
        "answer layer: %d of %d answers start from the checkpoint, %d at random",
        len(kept),
        len(labels),
        len(labels) - len(kept),
    )
