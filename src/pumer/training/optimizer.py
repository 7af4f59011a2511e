"""Parameter groups of the optimizer: learning rates of a model's parts, and weight decay."""

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from pumer.backbones import BACKBONES
from pumer.patching import LEARNED
from pumer.settings.train import OptimizerConfig


def parameter_groups(
    model: nn.Module, model_type: str, head: Sequence[str], decayed: Collection[str], config: OptimizerConfig
) -> list[dict[str, Any]]:
    """The trained parameters of a model by learning rate and weight decay; parts that learn alike share a group.

    `head` are prefixes of the head's names, `decayed` the names that weight decay shrinks. Of a `model_type` that is no
    key of `BACKBONES`, nothing counts as an encoder.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if name in decayed else 0.0
            groups.setdefault((config.lr * _factor(name, model_type, head, config), decay), []).append(parameter)
    return [{"params": members, "lr": lr, "weight_decay": decay} for (lr, decay), members in groups.items()]


def _factor(name: str, model_type: str, head: Sequence[str], config: OptimizerConfig) -> float:
    if f".{LEARNED}." in name:
        return config.reduction_factor
    if name.startswith(tuple(head)):
        return config.head_factor
    family = BACKBONES.get(model_type)
    encoder = family is not None and name.startswith(family.encoder_parameters)
    return config.encoder_factor if encoder else 1.0
