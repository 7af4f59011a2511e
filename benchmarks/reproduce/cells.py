"""What is trained and tested, as plain data: a cell of a table is one model on one task."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pumer.settings.common import Blank
from pumer.tasks import TASKS, Retrieval

RETRIEVAL = tuple(name for name, task in TASKS.items() if issubclass(task, Retrieval))


@dataclass(frozen=True)
class Cell:
    """One model on one task.

    Attributes:
        backbone: name in `pumer.backbones.BACKBONES`.
        task: name in `pumer.tasks.TASKS`.
        reduction: its method and settings as JSON text with sorted keys; None for the unreduced model.
        tuned: whether it was fine-tuned like this; if not, it is the fine-tuned original that is changed.
        teacher: whether its base is its teacher.
        image_size: pixels along a side; None for the model's own.
        seed: of the fine-tuning, and of that of the model it starts from.
        blank: the input that it never sees, in training or in test.
    """

    backbone: str
    task: str
    reduction: str | None = None
    tuned: bool = True
    teacher: bool = False
    image_size: int | None = None
    seed: int = 0
    blank: Blank = "none"

    @property
    def original(self) -> "Cell":
        """What it is compared with: the model without any of it, of the same seed."""
        return Cell(self.backbone, self.task, seed=self.seed)

    @property
    def base(self) -> "Cell":
        """The unreduced model that fine-tuning starts from, its teacher, for images of the same size."""
        return self.original if self.reduction is None else replace(self.original, image_size=self.image_size)

    @property
    def untuned(self) -> "Cell":
        """The same change to the original, without fine-tuning."""
        return replace(self, tuned=False, teacher=False)

    @property
    def weights(self) -> "Cell":
        """The cell whose training made its weights."""
        return self if self.tuned else self.original

    @property
    def architecture(self) -> "Cell":
        """What its speed, memory and arithmetic depend on."""
        return Cell(self.backbone, self.task, self.reduction, tuned=False, image_size=self.image_size)

    @property
    def settings(self) -> dict[str, Any] | None:
        """The reduction as plain data."""
        return None if self.reduction is None else json.loads(self.reduction)

    @property
    def name(self) -> str:
        """Unique; also a path."""
        parts = ["original" if self.reduction is None else f"{_method(self.reduction)}-{_digest(self.reduction)}"]
        parts += [f"{self.image_size}px"] * (self.image_size is not None)
        parts += [f"no-{self.blank}"] * (self.blank != "none")
        parts += ["no-teacher"] * (self.tuned and not self.teacher and self.reduction is not None)
        parts += ["untuned"] * (not self.tuned)
        return f"{self.backbone}/{self.task}/{'-'.join(parts)}/seed{self.seed}"


def reduced(backbone: str, task: str, reduction: Mapping[str, Any] | str, seed: int = 0) -> Cell:
    """A model that is fine-tuned with a reduction, beside its teacher."""
    settings = {"method": reduction} if isinstance(reduction, str) else reduction
    return Cell(backbone, task, json.dumps(settings, sort_keys=True), teacher=True, seed=seed)


def _method(reduction: str) -> str:
    return str(json.loads(reduction)["method"])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
