"""What converting a released checkpoint must know of a model family: the names there and here."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from pumer.backbones import Backbone
from pumer.utils.errors import InputError

_MATCHING = "itm_score.fc."  # scores "does not belong", "belongs": the second is where a ranking starts


@dataclass(frozen=True)
class Head:
    """The head of a task.

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


def task_heads(backbone: Backbone) -> dict[str, Head]:
    """The heads that released checkpoints of every family have, by task."""
    models = backbone.heads
    return {
        "vqa2": Head(models["question_answering"], "vqa_classifier."),
        "ve": Head(models["question_answering"], "ve_classifier.", labels=("contradiction", "neutral", "entailment")),
        "nlvr2": Head(models["image_pair"], "nlvr2_classifier.", labels=("False", "True")),
        "irtr": Head(models["retrieval"], "rank_output.", ours="rank_output."),
    }


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family.

    Attributes:
        backbone: The family here.
        heads: Head of each task.
        renamed: From the tensors of a checkpoint to the same under the names of a released one.
        unused: Prefixes of released tensors that no model needs.
        names: Pattern of names of our tensors to their released names; all that match are applied, in order.
        config: From tensors, the released config and the head to the model's config.
        fused: Parts of the names of three tensors that are the rows of one there, in order.
        tokenizer: Name of the tokenizer where the released config has none.
        similarity: The one that the released code uses whatever the released config has; None: that of the config.
        defaults: From the tensors of a checkpoint to values that its config may leave out.
    """

    backbone: Backbone
    heads: Mapping[str, Head]
    renamed: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    unused: tuple[str, ...]
    names: Mapping[str, str]
    config: Callable[[Mapping[str, Tensor], Mapping[str, Any], Head], PreTrainedConfig]
    fused: tuple[str, str, str]
    tokenizer: str
    similarity: Literal["mean_head", "first_head"] | None = None
    defaults: Callable[[Mapping[str, Tensor]], dict[str, Any]] = lambda state_dict: {}

    def used(self, state_dict: Mapping[str, Tensor], head: Head) -> dict[str, Tensor]:
        """The tensors that a model with this head needs, under released names."""
        weights = self.renamed(state_dict)
        if head is self.heads["irtr"] and not any(name.startswith(head.released) for name in weights):
            matching = {name: x for name, x in weights.items() if name.startswith(_MATCHING)}
            weights |= {head.released + name.removeprefix(_MATCHING): x[1:] for name, x in matching.items()}
        others = (other.released for other in self.heads.values() if other.released != head.released)
        unused = (*self.unused, *others)
        return {name: x for name, x in weights.items() if not name.startswith(unused)}

    def released_name(self, name: str, head: Head) -> str:
        """Released name of a tensor of our class."""
        for pattern, released in self.names.items():
            name = re.sub(pattern, released, name)
        return head.released + name.removeprefix(head.ours) if name.startswith(head.ours) else name


def shape_of(weights: Mapping[str, Tensor], name: str) -> torch.Size:
    """Shape of a tensor that must be there."""
    if name not in weights:
        raise InputError(f"tensor '{name}' is missing in the checkpoint")
    return weights[name].shape


def labels_of(weights: Mapping[str, Tensor], head: Head) -> dict[str, dict[Any, Any]]:
    """The labels of a head, as settings of a transformers config; one for each of its outputs."""
    last = max((name for name in weights if name.startswith(head.released)), default=f"{head.released}weight")
    outputs = shape_of(weights, last)[0]
    labels = head.labels or tuple(f"LABEL_{index}" for index in range(outputs))
    if len(labels) != outputs:
        raise InputError(f"'{last}' has {outputs} outputs, but the task has {len(labels)} labels")
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
