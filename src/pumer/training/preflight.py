"""Validate the config: settings that do not fit the model, the task or the machine."""

import torch
from transformers import PreTrainedModel
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from pumer.checkpoint import reading
from pumer.settings.train import TrainConfig
from pumer.tasks import Task, task_class
from pumer.tasks.heads import classes_of
from pumer.tasks.session import Session
from pumer.training.teacher import SELF
from pumer.utils.errors import InputError, unknown
from pumer.utils.places import check_new_folder


def validate(config: TrainConfig) -> None:
    """Check a training's settings against the model, the task and the machine; reads no data and no weights."""
    _check_machine(config)
    check_new_folder(config.output)
    task = task_class(config.task)
    session_around(meta_model(config.model, task), config, task(task.fixed_labels))
    if config.teacher not in (None, SELF):
        meta_model(str(config.teacher), task)


def session_around(model: PreTrainedModel, config: TrainConfig, task: Task) -> Session:
    """A model set up as a training's settings have it: image size, reduction, inputs."""
    return Session.around(
        config.model,
        model,
        task,
        text_length=config.text_length,
        resize=config.resize,
        blank=config.blank,
        image_size=config.image_size,
        reduction=config.reduction,
        fixed_length=bool(config.compile),
    )


def meta_model(checkpoint: str, task: type[Task]) -> PreTrainedModel:
    """The task's model for a checkpoint, on the meta device: layers and config without weights."""
    _, cls, config = classes_of(checkpoint, task.models())
    images = task.image_count
    if images > 1:  # as the task's model will have it, whatever the checkpoint was made for
        config.num_images, config.modality_type_vocab_size = images, max(1 + images, config.modality_type_vocab_size)
    with torch.device("meta"), reading(f"the model of {checkpoint} cannot be built"):
        return cls(config)


def _check_machine(config: TrainConfig) -> None:
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise InputError("precision is 'fp16' but torch sees no GPU; give precision=bf16 or precision=fp32")
    backends = torch.compiler.list_backends(exclude_tags=())
    if isinstance(config.compile, str) and config.compile not in backends:
        raise InputError(unknown("compile", config.compile, backends))
    for name in config.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise InputError(unknown("report_to", name, INTEGRATION_TO_CALLBACK))
        if name not in get_available_reporting_integrations():
            raise InputError(f"report_to names '{name}', which is not installed; `pip install {name}`, or leave it out")
