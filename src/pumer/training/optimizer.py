"""How weights learn: learning rates of a model's parts, their schedule, weight decay, clipping."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from pumer.errors import InputError
from pumer.patching import LEARNED

ENCODERS: Mapping[str, tuple[str, ...]] = {
    "vilt": ("vilt.embeddings.",),
    "meter": ("meter.text_model.", "meter.vision_model.", "meter.modality_embeddings."),
}
"""Names of the parameters that see one modality only, by model type: those before the cross-modal layers. METER's
projections and poolers count as cross-modal, its modality embedding as an encoder, as in its authors' code."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Linear warm-up, then polynomial decay; defaults are the paper's for ViLT (docs/paper.md).

    Attributes:
        lr: peak learning rate of the cross-modal layers, and of all that the factors do not name.
        encoder_factor: what runs before the cross-modal layers (METER's two encoders and its modality embedding, ViLT's
            embeddings) learns with `lr` times this.
        head_factor: the task's head learns with `lr` times this.
        reduction_factor: the weights of a reduction that has some, which always start at random, likewise.
        end_lr: what `lr` has become after the last step; the factors apply to it too.
        betas: of AdamW.
        weight_decay: of all weights but biases and LayerNorms.
        warmup: fraction of the steps, in [0, 1).
        power: of the decay; 1 is linear.
        max_grad_norm: gradients whose norm is larger are scaled down to it; null for no clipping, as in the paper.
        name: "adamw", or "sgd": plain, without momentum.
    """

    lr: float = 1e-4
    encoder_factor: float = 1.0
    head_factor: float = 10.0
    reduction_factor: float = 10.0
    end_lr: float = 1e-7
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup: float = 0.1
    power: float = 1.0
    max_grad_norm: float | None = None
    name: Literal["adamw", "sgd"] = "adamw"

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if not self.lr > self.end_lr >= 0:
            raise InputError(f"optimizer.lr must be above end_lr={self.end_lr}, not {self.lr}")
        for name in ("encoder_factor", "head_factor", "reduction_factor"):
            if not getattr(self, name) >= 0:
                raise InputError(f"optimizer.{name} must not be negative, not {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"optimizer.warmup is a fraction of the steps in [0, 1), not {self.warmup}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"optimizer.betas must lie in [0, 1), not {self.betas}")
        if not self.weight_decay >= 0:
            raise InputError(f"optimizer.weight_decay must not be negative, not {self.weight_decay}")
        if not self.power > 0:
            raise InputError(f"optimizer.power must be above 0, not {self.power}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise InputError(f"optimizer.max_grad_norm must be above 0 or null, not {self.max_grad_norm}")


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
