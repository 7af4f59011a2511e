"""What there is to choose from, and what a checkpoint is: `pumer list` and `pumer info`."""

from collections.abc import Callable, Mapping
from inspect import getdoc
from pathlib import Path
from typing import Any

import torch

from pumer.backbones import BACKBONES, DECODERS
from pumer.checkpoint import trained_with
from pumer.exporting.record import GENERATIVE, read_record
from pumer.patching import reduction
from pumer.profiling.named_models import PREFIX, skeleton
from pumer.reducers import METHODS, NoReduction, config_to_dict
from pumer.settings.common import PRESETS
from pumer.settings.overview import InfoConfig, ListConfig
from pumer.tasks import TASKS
from pumer.utils.places import is_exported
from pumer.utils.shipped import SMALL, name_of, recipes


def run(config: ListConfig | InfoConfig) -> dict[str, Any]:
    """What a command shows: of `pumer list` rows by kind and name, of `pumer info` facts by name."""
    if isinstance(config, InfoConfig):
        return about(config.model)
    kinds = LISTS if config.kind is None else (config.kind,)
    return {kind: LISTS[kind]() for kind in kinds}


def methods() -> dict[str, str]:
    """What every method does, and where: inside the layers of a stack, or before a decoder ("prompt")."""
    return {name: f"{_first_line(method)} ({', '.join(method.stacks)})" for name, method in METHODS.items()}


def models() -> dict[str, str]:
    """The models that ship, and the families of models that can be patched."""
    known = {name: ", in its wide layout" if name.endswith("-wide") else "" for name in SMALL}
    own = {name: f"ships with the package; knows the built-in world only{layout}" for name, layout in known.items()}
    fusion = {name: ", ".join(sorted(cls.__name__ for cls in each.heads.values())) for name, each in BACKBONES.items()}
    return own | fusion | dict.fromkeys(DECODERS, "generates; transformers' classes of this model_type")


LISTS: Mapping[str, Callable[[], dict[str, str]]] = {
    "methods": methods,
    "models": models,
    "tasks": lambda: {name: _first_line(task) for name, task in TASKS.items()},
    "recipes": recipes,
    "presets": lambda: dict.fromkeys((f"{PREFIX}{name}" for name in PRESETS), "full size, random weights"),
}
"""By what is listed."""


def about(model: str | Path) -> dict[str, Any]:
    """Facts about a checkpoint, without reading its weights.

    Raises:
        InputError: for a missing or broken checkpoint, and for an exported folder of another version.
    """
    if is_exported(model):
        record = read_record(model)
        generates = record.get("kind") == GENERATIVE
        own = ("image_tokens", "text_length") if generates else ("image_size", "text_lengths", "task")
        named = ("architecture", "format", "precision", *own, "source", "reduction")
        labels = {} if generates else {"labels": len(record["labels"])}
        return {"model": str(model)} | {name: record[name] for name in named} | labels
    with torch.device("meta"):
        found = skeleton(str(model))
    config: Any = found.config
    trained = trained_with(model)
    return {
        "model": name_of(model),
        "architecture": type(found).__name__,
        "parameters": sum(weights.numel() for weights in found.parameters()),
        "image_size": getattr(getattr(config, "vision_config", config), "image_size", None),
        "labels": len(config.id2label) if hasattr(found, "classifier") else None,
        "reduction": config_to_dict(reduction(found) or NoReduction()),
        "task": trained.get("task"),
        "text_length": trained.get("text_length"),
        "teacher": trained.get("teacher"),
    }


def _first_line(of: type[Any]) -> str:
    return (getdoc(of) or "").partition("\n")[0].removesuffix(".")
