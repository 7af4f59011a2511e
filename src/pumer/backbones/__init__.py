"""Model families: one file each, listed in BACKBONES."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from pumer.backbones.base import Backbone, Family, Head
from pumer.backbones.decoders import DECODERS, REFUSED
from pumer.backbones.meter import METER
from pumer.backbones.state import Reduction
from pumer.backbones.vilt import VILT

BACKBONES: dict[str, Backbone] = {"vilt": VILT, "meter": METER}
"""By transformers' ``model_type``."""

__all__ = [
    "BACKBONES",
    "DECODERS",
    "REFUSED",
    "Backbone",
    "Family",
    "Head",
    "Reduction",
    "backbone_of",
    "families_in",
    "models_for",
    "roots",
]


def roots(model: nn.Module) -> list[tuple[nn.Module, Backbone]]:
    """Every module of a family with heads inside a model, with its family; there may be none."""
    families = BACKBONES.values()
    return [(part, family) for part in model.modules() for family in families if isinstance(part, family.root)]


def families_in(model: nn.Module) -> list[tuple[nn.Module, Family]]:
    """Every module of a supported family inside a model, with its family; there may be none."""
    families: list[Family] = [*BACKBONES.values(), *DECODERS.values()]
    return [(part, family) for part in model.modules() for family in families if isinstance(part, family.root)]


def backbone_of(model: nn.Module) -> Backbone | None:
    """The family of a transformers model by its config, with any head; None for another one."""
    config: Any = getattr(model, "config", None)
    return BACKBONES.get(getattr(config, "model_type", ""))


def models_for(head: Head) -> dict[str, type[PreTrainedModel]]:
    """The model class with a head in each family that has it, by ``model_type``."""
    return {name: family.heads[head] for name, family in BACKBONES.items() if head in family.heads}
