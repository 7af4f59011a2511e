"""What can be refused before any work starts: settings that do not fit the model, the task or the machine."""

import difflib
from collections.abc import Iterable

import torch
from torch import nn
from transformers import AutoConfig
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from pumer.backbones.image_size import set_image_size
from pumer.checkpoint import load_processor, model_class, reading
from pumer.patching import patch
from pumer.reducers import reduction_from
from pumer.settings.train import TrainConfig
from pumer.tasks import Inputs, Task, task_class
from pumer.tasks.loading import make_inputs, text_length_of
from pumer.utils.arguments import writable_folders
from pumer.utils.errors import InputError

SELF = "self"


def check(config: TrainConfig) -> Inputs:
    """Check a training's settings against the model, the task and the machine; reads no data and no weights.

    Args:
        config: what is going to be trained.

    Returns:
        How examples become tensors.

    Raises:
        InputError: for the first setting that does not fit.
    """
    _check_machine(config)
    writable_folders(config.output)
    task = task_class(config.task)
    model, processor = outline(config.model, task), load_processor(config.model)
    set_image_size(config.image_size, model, processor)
    patch(model, reduction_from(config.reduction))
    if config.teacher not in (None, SELF):
        outline(str(config.teacher), task)
    length = text_length_of(model, config.text_length)
    return make_inputs(processor, length, config.resize, config.blank, fixed_length=bool(config.compile))


def outline(checkpoint: str, task: type[Task]) -> nn.Module:
    """The task's model for a checkpoint, on the meta device: layers and config without weights.

    Raises:
        InputError: when the checkpoint cannot be read, or is no model for the task.
    """
    model_class(checkpoint)
    config = AutoConfig.from_pretrained(checkpoint)
    if config.model_type not in task.models:
        allowed = " or ".join(f"'{name}'" for name in task.models)
        raise InputError(f"checkpoint {checkpoint} is a '{config.model_type}' model; this task needs {allowed}")
    images = getattr(task, "image_count", 1)
    if images > 1:  # as the task's model will have it, whatever the checkpoint was made for
        config.num_images, config.modality_type_vocab_size = images, max(1 + images, config.modality_type_vocab_size)
    with torch.device("meta"), reading(f"the model of {checkpoint} cannot be built"):
        return task.models[config.model_type](config)


def _check_machine(config: TrainConfig) -> None:
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise InputError("precision is 'fp16' but torch sees no GPU; give precision=bf16 or precision=fp32")
    if isinstance(config.compile, str):
        _check_name("compile", config.compile, torch.compiler.list_backends(exclude_tags=()))
    for name in config.report_to:
        _check_name("report_to", name, INTEGRATION_TO_CALLBACK)
        if name not in get_available_reporting_integrations():
            raise InputError(f"report_to names '{name}', which is not installed; `pip install {name}`, or leave it out")


def _check_name(key: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        remedy = f"did you mean '{nearest[0]}'?" if nearest else f"there are: {', '.join(sorted(known))}"
        raise InputError(f"{key} '{name}' is unknown; {remedy}")
