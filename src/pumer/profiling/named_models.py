"""Models by name, for measuring and planning: presets with random weights, checkpoints, copies that share weights."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from pumer.backbones import BACKBONES, DECODERS, backbone_of
from pumer.checkpoint import (
    has_processor,
    load,
    model_class,
    read_model,
    read_reduction,
    reading,
    saved_files,
    trained_with,
)
from pumer.patching import patch, unpatch
from pumer.profiling.generative_presets import CONFIGS, generative_presets
from pumer.reducers import ReductionConfig
from pumer.utils.errors import InputError
from pumer.utils.shipped import located

PREFIX = "preset:"
PAPER_TEXT_LENGTH = 32


def presets() -> dict[str, Callable[[], PreTrainedModel]]:
    """Full-size models with random weights; speed, memory and MACs do not depend on the weights."""
    answering = {name: build for family in BACKBONES.values() for name, build in family.presets.items()}
    return answering | generative_presets()


def generates(name: str) -> bool:
    """Whether the model of a name is of a family that generates; of a checkpoint only ``config.json`` is read."""
    if name.startswith(PREFIX):
        return name.removeprefix(PREFIX) in CONFIGS
    config: Any = model_class(name).config_class
    return config.model_type in DECODERS


def model_from(name: str) -> PreTrainedModel:
    """A preset with random weights, or a checkpoint, in eval mode.

    The name is that of a preset ("preset:vilt-b32", "preset:llava-1.5-7b", ...), of a small model that ships with the
    package, such as "small:vilt", a folder, or a hub name.
    """
    if not name.startswith(PREFIX):
        return load(name)
    with torch.random.fork_rng(devices=[]):  # the global generator is left as it was
        torch.default_generator.manual_seed(0)  # of the CPU alone, which is what is put back
        return _preset(name).eval()


def skeleton(name: str) -> PreTrainedModel:
    """The model of `model_from` without its weights; patched as the checkpoint was saved."""
    if name.startswith(PREFIX):
        return _preset(name).eval()
    name = located(name)
    cls = model_class(name)
    with reading(f"the model of {name} cannot be built"):
        model: PreTrainedModel = cls(AutoConfig.from_pretrained(name)).eval()
    if saved_files(name):  # a folder
        read_model(cls, name, device_map="meta")  # refuses what cannot be loaded; no weights are read
    saved = read_reduction(name)
    return model if saved is None else patch(model, saved)


def _preset(name: str) -> PreTrainedModel:
    preset, known = name.removeprefix(PREFIX), presets()
    if preset not in known:
        raise InputError(f"preset '{preset}' is unknown; there are: {', '.join(known)}")
    return known[preset]()


def default_text_length(name: str, model: PreTrainedModel) -> int:
    """Words that a checkpoint was trained with; if unknown the paper's 32, or its positions if fewer."""
    recorded: int | None = None if name.startswith(PREFIX) else trained_with(located(name)).get("text_length")
    return recorded or min(PAPER_TEXT_LENGTH, int(model.config.max_position_embeddings))


def default_image_size(name: str, model: PreTrainedModel) -> int:
    """Pixels along a side of what a checkpoint's processor delivers; the model's own size for a preset."""
    family, checkpoint = backbone_of(model), located(name)
    if family is None:
        raise InputError(f"{name} is a {type(model).__name__}, which reads no images; give one that does")
    own = int(model.config.image_size)
    if family.set_image_size is not None or name.startswith(PREFIX) or not has_processor(checkpoint):
        return own
    with reading(f"the processor of {name} cannot be read"):
        return int(family.image_processor.from_pretrained(checkpoint).size["shortest_edge"])


def variant(model: PreTrainedModel, config: ReductionConfig | None, slice_size: int | None = None) -> PreTrainedModel:
    """A copy of a model that shares its weights and is reduced in its own way; None: transformers' own forward."""
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    twin = copy.deepcopy(model, shared)
    if config is None:
        return unpatch(twin)
    return patch(twin, config, slice_size=slice_size)
