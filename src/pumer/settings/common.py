"""Values that settings of several jobs share."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pumer.utils.errors import InputError

TASKS = ("vqav2", "nlvr2", "snli_ve", "flickr30k", "coco")
"""The names in `pumer.tasks.TASKS`; the built-in world has a data set for each."""
RETRIEVAL = ("flickr30k", "coco")
"""Those of them that rank images and captions, and draw other ones to compare with in every epoch."""
BACKBONES = ("vilt", "meter")
"""The names in `pumer.backbones.BACKBONES`."""
METHODS = ("none", "pumer", "pumer-released", "tome", "dynamicvit", "evit", "cls", "random", "pooling")
"""The names in `pumer.reducers.METHODS`."""
PRESETS = ("vilt-b32", "vilt-b32-nlvr2", "meter-b16", "meter-b16-nlvr2")
"""The names in `pumer.profiling.named_models.PRESETS`."""
Resize = Literal["square", "aspect"]
Blank = Literal["none", "image", "text"]
Rule = Literal["official", "published"]
"""When VQA accuracy normalises answers, see `pumer.tasks.vqa_accuracy.accuracy`."""
LARGEST_MAGNITUDE = 30
"""Magnitudes of RandAugment are fractions of this."""


def known_task(name: str | None) -> None:
    """Refuse a task that does not exist; None is passed over.

    Raises:
        InputError: with the names that do.
    """
    if name is not None and name not in TASKS:
        raise InputError(f"task '{name}' is unknown; there are: {', '.join(TASKS)}")


def known_rule(rule: str | None, task: str | None) -> None:
    """Refuse a rule that does not exist, or for another task than VQAv2; None is passed over.

    Raises:
        InputError: with the rules that do.
    """
    if rule is not None and rule not in get_args(Rule):
        raise InputError(f"rule must be one of {', '.join(get_args(Rule))}, not '{rule}'")
    if rule is not None and task not in (None, "vqav2"):
        raise InputError(f"rule={rule} is for task vqav2, not for task {task}; leave it out")


def known_preset(model: str) -> None:
    """Refuse a preset that does not exist; other names pass.

    Raises:
        InputError: with the names that do.
    """
    name = model.removeprefix("preset:")
    if model.startswith("preset:") and name not in PRESETS:
        raise InputError(f"preset '{name}' is unknown; there are: {', '.join(PRESETS)}")


def known_method(reduction: Mapping[str, Any] | str | None) -> None:
    """Refuse a reduction by a method that does not exist; None passes, and so do its settings.

    Raises:
        InputError: with the names that do.
    """
    method = reduction.get("method") if isinstance(reduction, Mapping) else reduction
    if reduction is not None and method not in METHODS:
        raise InputError(f"reduction method {method!r} is unknown; there are {', '.join(METHODS)}")


def gallery_sizes(galleries: str) -> tuple[int, int]:
    """How many galleries of how many images "50x20" means.

    Raises:
        InputError: for another form.
    """
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", galleries)
    if found is None:
        raise InputError(f"galleries must be of the form 50x20 (50 galleries of 20 images), not '{galleries}'")
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class AugmentConfig:
    """RandAugment (Cubuk et al., 2020) as ViLT and METER are fine-tuned with it: 2 operations of magnitude 9.

    Attributes:
        operations: drawn for each picture, one after the other.
        magnitude: of all of them, from 0 to 30.
    """

    operations: int = 2
    magnitude: float = 9

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if self.operations < 1:
            raise InputError(
                f"augment.operations must be at least 1, not {self.operations}; leave augment out for none"
            )
        if not 0 <= self.magnitude <= LARGEST_MAGNITUDE:
            raise InputError(f"augment.magnitude must lie in [0, {LARGEST_MAGNITUDE}], not {self.magnitude}")
