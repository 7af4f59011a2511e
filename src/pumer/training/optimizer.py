"""How weights learn: learning rates of a model's parts, their schedule, weight decay, clipping."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from pumer.patching import LEARNED
from pumer.settings.train import OptimizerConfig

ENCODERS: Mapping[str, tuple[str, ...]] = {
    "vilt": ("vilt.embeddings.",),
    "meter": ("meter.text_model.", "meter.vision_model.", "meter.modality_embeddings."),
}
"""Names of the parameters that see one modality only, by model type: those before the cross-modal layers. METER's
projections and poolers count as cross-modal, its modality embedding as an encoder, as in its authors' code."""


def parameter_groups(
    model: nn.Module,
    model_type: str,
    head: Sequence[str],
    decayed: Collection[str],
    config: OptimizerConfig,
) -> list[dict[str, Any]]:
    """The trained parameters of a model by learning rate and weight decay.

    Args:
        model: what is trained.
        model_type: key of `ENCODERS`; of another type, nothing counts as an encoder.
        head: prefixes of the names of the head's parameters.
        decayed: names of the parameters that weight decay shrinks.
        config: the rates.

    Returns:
        Groups for an optimizer; parts that learn alike share one.
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
    return config.encoder_factor if name.startswith(ENCODERS.get(model_type, ())) else 1.0
