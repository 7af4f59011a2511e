"""What converting a released checkpoint must know of a model family: the names there and here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from pumer.utils.errors import InputError

ENTAILMENT = ("contradiction", "neutral", "entailment")


@dataclass(frozen=True)
class Head:
    """How a task's head is called there and here.

    Attributes:
        model: The class of its model here.
        released: Prefix of the head's tensors in a released checkpoint.
        ours: Their prefix in the class.
        labels: Meaning of the logits' columns where it is fixed.
    """

    model: type[PreTrainedModel]
    released: str
    ours: str = "classifier."
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        heads: Head of each task.
        used: From the tensors of a checkpoint and a head to those that its model needs, under released names.
        config: From those, the released config and the head to the model's config.
        released_name: From the name of a tensor of the model, and the head, to its released name.
        fused: Parts of the names of three tensors that are the rows of one there, in order.
        similarity: The one that the released code uses whatever the released config says; None: what it says.
        defaults: From the tensors of a checkpoint to what the released config says if it does not say it.
        prepare: Done to the model before the tensors are filled in.
        finish: Done to the filled model, with the released config.
    """

    heads: Mapping[str, Head]
    used: Callable[[Mapping[str, Tensor], Head], dict[str, Tensor]]
    config: Callable[[Mapping[str, Tensor], Mapping[str, Any], Head], PreTrainedConfig]
    released_name: Callable[[str, Head], str]
    fused: tuple[str, str, str]
    similarity: Literal["mean_head", "first_head"] | None = None
    defaults: Callable[[Mapping[str, Tensor]], dict[str, Any]] = lambda state_dict: {}
    prepare: Callable[[PreTrainedModel], object] = lambda model: None
    finish: Callable[[PreTrainedModel, Mapping[str, Any]], object] = lambda model, config: None


def shape_of(weights: Mapping[str, Tensor], name: str) -> torch.Size:
    """Shape of a tensor.

    Raises:
        InputError: If it is missing.
    """
    if name not in weights:
        raise InputError(f"tensor '{name}' is missing in the checkpoint")
    return weights[name].shape


def labels_of(weights: Mapping[str, Tensor], head: Head) -> dict[str, dict]:
    """The labels of a head, as settings of a transformers config.

    Raises:
        InputError: If the task's labels are fixed but the head has another number of outputs.
    """
    last = max((name for name in weights if name.startswith(head.released)), default=f"{head.released}weight")
    outputs = shape_of(weights, last)[0]
    labels = head.labels or tuple(f"LABEL_{index}" for index in range(outputs))
    if len(labels) != outputs:
        raise InputError(f"'{last}' has {outputs} outputs, but the task has {len(labels)} labels")
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
