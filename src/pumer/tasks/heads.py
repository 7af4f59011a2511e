"""Starting a task's model from a checkpoint, whose head may know other labels, other images or none."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from pumer.backbones.text_norm import restore_text_norm
from pumer.checkpoint import model_class, read_model
from pumer.utils.errors import InputError

logger = logging.getLogger(__name__)

_KINDS = {"vilt": "embeddings.token_type_embeddings.weight", "meter": "modality_embeddings.weight"}
"""Where a model type keeps the embedding that tells text, image and second image apart, one row each."""
_IMAGE = 1


def classifier_from(
    checkpoint: str, labels: Sequence[str], models: Mapping[str, type[PreTrainedModel]], images: int = 1
) -> PreTrainedModel:
    """A model with a `classifier` whose last layer has one row per label.

    Rows of labels that the checkpoint's head knows keep their weights; the rest of the last layer, and the whole head
    where the checkpoint has none for so many images, is initialised at random from torch's global generator. A second
    image that the checkpoint knows nothing of starts with the modality embedding of the first.

    Args:
        checkpoint: local directory or hub name.
        labels: meaning of the logits' columns.
        models: model classes by the `model_type`s that are allowed.
        images: how many images the model sees at once.

    Raises:
        InputError: when the checkpoint cannot be read or is of another model type.
    """
    saved_as = model_class(checkpoint)
    config = AutoConfig.from_pretrained(checkpoint)
    if config.model_type not in models:
        allowed = " or ".join(f"'{name}'" for name in models)
        raise InputError(f"checkpoint {checkpoint} is a '{config.model_type}' model; this task needs {allowed}")
    cls = models[config.model_type]
    known = [config.id2label[index] for index in range(config.num_labels)] if saved_as is cls else []
    if not known:
        config.num_labels = len(labels)
    if saved_as is cls:
        model, _ = read_model(cls, checkpoint, config=config, dtype=torch.float32)
    else:
        model = restore_text_norm(_around_body(cls, saved_as, checkpoint, config, images))
    if known != list(labels):
        _relabel(model, known, labels)
    return model


def _around_body(
    cls: type[PreTrainedModel], saved_as: type[PreTrainedModel], checkpoint: str, config: Any, images: int
) -> PreTrainedModel:
    """A model with a new head around the body of a model of another class."""
    body = read_model(saved_as, checkpoint, head=False, dtype=torch.float32)[0].base_model.state_dict()
    if images > 1:
        kinds = _KINDS[config.model_type]
        missing = max(0, 1 + images - len(body[kinds]))
        body[kinds] = torch.cat([body[kinds], body[kinds][[_IMAGE] * missing]])
        config.num_images, config.modality_type_vocab_size = images, len(body[kinds])
    model = cls(config).eval()
    missing = model.base_model.load_state_dict(body, strict=False).missing_keys
    fresh = "head and pooler start" if missing else "the head starts"
    logger.info("%s is a %s: %s at random", checkpoint, saved_as.__name__, fresh)
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
