"""A model with its processor, its task and its inputs, set up once: what every job works with."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from pumer.backbones import backbone_of
from pumer.backbones.image_size import set_image_size
from pumer.checkpoint import learned_names, load, load_processor, trained_with
from pumer.compiling.compile import compile as compiled
from pumer.patching import patch
from pumer.patching import reduction as reduction_in
from pumer.reducers import NoReduction, ReductionConfig, config_to_dict, reduction_from
from pumer.settings.common import Blank, Resize, Rule, check_rule
from pumer.tasks import TASKS, Example, Inputs, Task, VQAv2, task_class
from pumer.tasks.loading import make_inputs, text_length_of
from pumer.utils.errors import InputError
from pumer.utils.shipped import SMALL, name_of
from pumer.utils.tensors import best_device
from pumer.world.scenes import SceneConfig

logger = logging.getLogger(__name__)

_TOKENIZING = Lock()
_DEFAULTS: Mapping[str, Any] = {"task": "vqav2", "text_length": None, "resize": "square", "blank": "none"}


@dataclass(frozen=True)
class TaskModel:
    """A model with its processor and the task whose examples it answers.

    Attributes:
        name: folder or hub name of the checkpoint.
        model: patched; of `open` in eval mode and on its device.
        processor: the model's.
        task: bound to the answers that the model gives.
        root: data folder that was given, or that the model was trained on; None where neither is known.
    """

    name: str
    model: PreTrainedModel
    processor: Any
    task: Task
    root: Path | None = field(default=None, kw_only=True)

    def check(self, example: Example) -> None:
        """Refuse an example with another number of images than the task has; warn where the model knows nothing."""
        count = self.task.image_count
        if len(example.images) != count:
            raise InputError(f"task {self.task.name} looks at {count} image(s) at once, not {len(example.images)}")
        if (name := name_of(self.name)) in SMALL and not self.of_world(example):
            _warn_of_other_worlds(name)

    def of_world(self, example: Example) -> bool:
        """Whether images have the size of those of the built-in world, and the words are some of its own."""
        sizes = set()
        for image in example.images:
            with suppress(OSError):  # of a prepared folder, or broken, which is said when it is read
                sizes.add(image.shape[1::-1] if isinstance(image, np.ndarray) else _size(image))
        edge = SceneConfig().image_size
        with _TOKENIZING:
            tokenizer = self._own_tokenizer
            words = tokenizer.tokenize(example.text)
        known = not any(word == tokenizer.unk_token or word.startswith("##") for word in words)
        return known and sizes <= {(edge, edge)}

    @cached_property
    def _own_tokenizer(self) -> Any:
        """A copy for `check`, which other threads call while the tokenizer pads a batch: its settings change then."""
        return deepcopy(self.processor.tokenizer)

    @property
    def reduction(self) -> dict[str, Any]:
        """The reduction in place, as plain data."""
        return config_to_dict(reduction_in(self.model) or NoReduction())


@dataclass(frozen=True)
class Session(TaskModel):
    """A model that is ready to take a task's examples: `open` one that was trained, or set up `around` a new one.

    Example:
        >>> session = Session.open("out/vqav2-pumer")  # doctest: +SKIP
        >>> inputs = session.task.collate(examples, session.inputs)["inputs"]  # doctest: +SKIP
        >>> logits = session.forward(**inputs).logits  # doctest: +SKIP

    Its `processor` is at the image size in force, its `task` bound to the meaning of the model's logits.

    Attributes:
        inputs: how examples become tensors.
        forward: what to call with a batch: the model, or what `pumer.compile` makes of it.
    """

    inputs: Inputs
    forward: nn.Module

    @property
    def separable(self) -> bool:
        """Whether the model encodes images and texts apart, see `pumer.backbones.Backbone`."""
        family = backbone_of(self.model)
        return family is not None and family.separable

    @classmethod
    def open(
        cls,
        name: str | Path,
        task: str | None = None,
        *,
        root: Path | None = None,
        text_length: int | None = None,
        resize: Resize | None = None,
        blank: Blank | None = None,
        image_size: int | None = None,
        reduction: Mapping[str, Any] | str | None = None,
        rule: Rule | None = None,
        device: torch.device | str | None = None,
        compile: bool = False,
    ) -> "Session":
        """Load a trained model, patched as it was saved; settings left at None are those of its training.

        Args:
            name: folder or hub name.
            task: name in `pumer.tasks.TASKS`; "vqav2" where the model's folder does not record one.
            root: data folder.
            text_length: tokens that texts are cut to, at most the model's positions.
            resize: see `pumer.tasks.Pixels`.
            blank: see `pumer.tasks.loading.make_inputs`.
            image_size: pixels along a side, see `set_image_size`; None for the checkpoint's own.
            reduction: replaces the saved one: a mapping with `method`, or the name of a method.
            rule: of VQAv2, see `pumer.tasks.metrics.vqa_accuracy`; None for the official one.
            device: by default the accelerator if there is one, else the CPU.
            compile: let `forward` be the model as `pumer.compile` makes it.

        Raises:
            InputError: for a missing or broken checkpoint, one of another task, and settings that do not fit it.
        """
        recorded = trained_with(name)
        given = {"task": task, "text_length": text_length, "resize": resize, "blank": blank}
        settings = {key: recorded.get(key, value) for key, value in _DEFAULTS.items()}
        settings |= {key: value for key, value in given.items() if value is not None}
        folder = root or recorded.get("data", {}).get("root")
        model, kind = load(name), task_class(settings.pop("task"))
        saved, bound = reduction_in(model), bind(str(name), model, kind, rule)
        session = cls.around(str(name), model, bound, image_size=image_size, reduction=reduction, **settings)
        warn_of_random_weights(name, model, saved)
        model.to(device or best_device())
        forward = compiled(model) if compile else model
        return replace(session, forward=forward, root=None if folder is None else Path(folder))

    @classmethod
    def around(
        cls,
        name: str,
        model: PreTrainedModel,
        task: Task,
        *,
        text_length: int | None = None,
        resize: Resize = "square",
        blank: Blank = "none",
        image_size: int | None = None,
        reduction: Mapping[str, Any] | str | None = None,
        fixed_length: bool = False,
    ) -> "Session":
        """Set the image size of a model that is at hand, patch it, in place, and make its inputs.

        Settings are those of `open`, and `fixed_length`: pad every text to `text_length`, so that a compiled model sees
        one shape. Without a reduction the one in place is kept, or the fast path is switched on.
        """
        processor = load_processor(name)
        set_image_size(image_size, model, processor)
        if reduction is not None or reduction_in(model) is None:
            patch(model, reduction_from(reduction or "none"))
        length = text_length_of(model.config, text_length)
        inputs = make_inputs(processor, length, resize, blank, fixed_length)
        return cls(name, model, processor, task, inputs, forward=model)


def _size(image: Path | str | Image.Image) -> tuple[int, int]:
    if isinstance(image, Image.Image):
        return image.size
    with Image.open(image) as opened:
        return opened.size


@cache
def _warn_of_other_worlds(name: str) -> None:
    """Log once what a model that ships does not know."""
    logger.warning("%s knows the built-in world alone; its answers about other images and words mean nothing", name)


def warn_of_random_weights(name: str | Path, model: nn.Module, saved: ReductionConfig | None) -> None:
    """Log that a patched model has weights of its reduction that the one it was `saved` with does not have."""
    now = reduction_in(model) or NoReduction()
    trained = saved.places() if saved is not None and saved.method == now.method else ()
    if learned_names(model) and not set(now.places()) <= set(trained):
        logger.warning("%s has no weights of '%s' for these layers: they are random", name, now.method)


def bind(name: str, model: PreTrainedModel, kind: type[Task], rule: Rule | None = None) -> Task:
    """The task of a model, bound to the model's labels and, of VQAv2, to a rule; refuses a model of another task."""
    if not isinstance(model, tuple(kind.models().values())):
        needed = " or ".join(cls.__name__ for cls in kind.models().values())
        others = [other for other, each in TASKS.items() if isinstance(model, tuple(each.models().values()))]
        remedy = f"; give task={' or '.join(others)}" if others else ""
        raise InputError(f"{name} is a {type(model).__name__}; task {kind.name} needs a {needed}{remedy}")
    return with_rule(kind, labels_of(model), rule)


def with_rule(kind: type[Task], labels: tuple[str, ...], rule: Rule | None) -> Task:
    """A task bound to labels and, of VQAv2, to a rule: see `pumer.tasks.metrics.vqa_accuracy`."""
    check_rule(rule, kind.name)
    return VQAv2(labels, rule) if rule is not None else kind(labels)


def labels_of(model: PreTrainedModel) -> tuple[str, ...]:
    """The meaning of the columns of a classifier's logits, from its config; a column without a name is an error."""
    names: Mapping[Any, Any] = model.config.id2label or {}
    unnamed = next((index for index in range(len(names)) if not isinstance(names.get(index), str)), None)
    if unnamed is not None:
        raise InputError(f"id2label in the model's config must name columns 0 to {len(names) - 1}, not lack {unnamed}")
    return tuple(names[index] for index in range(len(names)))
