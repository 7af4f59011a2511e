"""Starting a task's model from a checkpoint, whose head may know other labels, other images or none."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from pumer.backbones import BACKBONES
from pumer.checkpoint import HEADS_FILE, WEIGHTS_FILE, check_tensors, model_class, read_model, read_tensors
from pumer.utils.errors import InputError

logger = logging.getLogger(__name__)

Models = Mapping[str, type[PreTrainedModel]]

_IMAGE = 1
_RANKING = "rank_output"
_MATCHING = "itm_score.fc"  # scores "does not belong", "belongs": the second is where a ranking starts


def classifier_from(checkpoint: str, labels: Sequence[str], models: Models, images: int = 1) -> PreTrainedModel:
    """A model with a `classifier` whose last layer has one row per label.

    Rows of labels that the checkpoint's head knows keep their weights; the rest of the last layer, and the whole head
    where the checkpoint has none for so many images, is initialised at random from torch's global generator. A second
    image that the checkpoint knows nothing of starts with the modality embedding of the first.
    """
    saved_as, cls, config = classes_of(checkpoint, models)
    known = [config.id2label[index] for index in range(config.num_labels)] if saved_as is cls else []
    if not known:
        config.num_labels = len(labels)
    if saved_as is cls:
        model, _ = read_model(cls, checkpoint, config=config, dtype=torch.float32)
    else:
        model = _around_body(cls, saved_as, checkpoint, config, images)
        BACKBONES[config.model_type].restore(model)
    if known != list(labels):
        _relabel(model, known, labels)
    return model


def ranking_from(checkpoint: str, models: Models) -> PreTrainedModel:
    """A model with a `rank_output`, a linear layer from the pooled vector to one score.

    It keeps the checkpoint's, or starts as the second row of its `itm_score.fc` (image-text matching, from
    pre-training; in its weights or in HEADS_FILE beside them), or at random from torch's global generator.
    """
    saved_as, cls, config = classes_of(checkpoint, models)
    config.num_labels = 1
    model, absent = read_model(cls, checkpoint, head=saved_as is cls, config=config, dtype=torch.float32)
    if poolers := sorted(absent - {_RANKING}):
        logger.info("%s has no %s: it starts at random", checkpoint, " and no ".join(poolers))
    if _RANKING in absent:
        matched = any(_copy_matching(model, checkpoint, file) for file in (WEIGHTS_FILE, HEADS_FILE))
        logger.info("ranking layer: starts %s", "from image-text matching" if matched else "at random")
    return model


def classes_of(checkpoint: str, models: Models) -> tuple[type[PreTrainedModel], type[PreTrainedModel], Any]:
    """The class a checkpoint was saved from, and the class and config for this task: of the same model type."""
    saved_as = model_class(checkpoint)
    config = AutoConfig.from_pretrained(checkpoint)
    if config.model_type not in models:
        allowed = " or ".join(f"'{name}'" for name in models)
        raise InputError(f"checkpoint {checkpoint} is a '{config.model_type}' model; this task needs {allowed}")
    return saved_as, models[config.model_type], config


def _around_body(
    cls: type[PreTrainedModel], saved_as: type[PreTrainedModel], checkpoint: str, config: Any, images: int
) -> PreTrainedModel:
    """A model with a new head around the body of a model of another class."""
    body = read_model(saved_as, checkpoint, head=False, dtype=torch.float32)[0].base_model.state_dict()
    if images > 1:
        modality = BACKBONES[config.model_type].modality_embeddings
        missing = max(0, 1 + images - len(body[modality]))
        body[modality] = torch.cat([body[modality], body[modality][[_IMAGE] * missing]])
        config.num_images, config.modality_type_vocab_size = images, len(body[modality])
    model = cls(config).eval()
    missing = model.base_model.load_state_dict(body, strict=False).missing_keys
    random = "head and pooler start" if missing else "the head starts"
    logger.info("%s is a %s: %s at random", checkpoint, saved_as.__name__, random)
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
    counts = (len(kept), len(labels), len(labels) - len(kept))
    logger.info("answer layer: %d of %d answers start from the checkpoint, %d at random", *counts)


def _copy_matching(model: PreTrainedModel, checkpoint: str, file: str) -> bool:
    """Fill the ranking layer from the matching layer in a file of the checkpoint; False where it has none."""
    tensors = read_tensors(checkpoint, file, lambda name: name.startswith(f"{_MATCHING}."))
    if not tensors:
        return False
    own = {f"{_MATCHING}.{name}": tensor for name, tensor in model.rank_output.named_parameters()}
    pairs = {name: tensor.new_zeros(2, *tensor.shape[1:]) for name, tensor in own.items()}
    check_tensors(f"{checkpoint} ({file})", tensors, pairs)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name][1:])
    return True
