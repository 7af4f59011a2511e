"""The unreduced model that a reduced one imitates, loaded and asked apart from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed

from pumer.backbones.image_size import set_image_size
from pumer.checkpoint import load
from pumer.evaluation.evaluate import check_class, labels_of
from pumer.patching import patch
from pumer.reducers import NoReduction
from pumer.settings.train import TrainConfig
from pumer.tasks import Task
from pumer.tokens import Tokens
from pumer.training.hidden import final_tokens
from pumer.training.preflight import SELF
from pumer.utils.errors import InputError

Batch = Mapping[str, Any]

NOT_FINITE = "the teacher's logits are not all finite numbers; give another teacher, or precision=fp32"


@dataclass(frozen=True)
class Taught:
    """What a teacher says about a batch.

    Attributes:
        logits: (B, A).
        tokens: final tokens of each run of the encoder; None if they are not asked for.
    """

    logits: Tensor
    tokens: list[Tokens] | None = None


class Teacher:
    """A model that is asked about every batch, in eval mode and without autograd.

    Attributes:
        model: patched, frozen; it is no module of the model that learns, so that nothing saves or shards it.
    """

    def __init__(self, model: nn.Module, task: Task, hidden: bool = False) -> None:
        """Take the model on.

        Args:
            model: patched, on its device.
            task: how it is asked.
            hidden: hand out final tokens as well.
        """
        self.model = model.requires_grad_(False).eval()
        self.task, self.hidden = task, hidden

    def to(self, device: torch.device) -> "Teacher":
        """Move the model; returns the teacher."""
        self.model.to(device)
        return self

    def __call__(self, batch: Batch) -> Taught:
        """What it says about a batch, as made by a `Collator`."""
        with torch.inference_mode():
            if not self.hidden:
                logits, tokens = self.task.logits(self.model, batch), None
            else:
                with final_tokens(self.model) as tokens:
                    logits = self.task.logits(self.model, batch)
        return Taught(logits.clone(), tokens)  # a clone made here can take part in a loss


def teacher_of(config: TrainConfig, task: Task, model: PreTrainedModel) -> Teacher | None:
    """The model to imitate: on the fast path, without reduction, and with the same answers.

    Args:
        config: names it.
        task: bound to the answers.
        model: what is going to imitate it.

    Returns:
        The teacher; None where the config names none.

    Raises:
        InputError: when it cannot be read, has other answers, or hidden states of another width.
    """
    if config.teacher is None:
        return None
    if config.teacher == SELF:
        set_seed(config.seed)
        teacher = task.model(config.model, task.labels)
    else:
        teacher = load(config.teacher)
        check_class(config.teacher, teacher, type(task))
        if type(task)(labels_of(teacher)).labels != task.labels:
            raise InputError(
                f"teacher {config.teacher} knows other answers ({len(labels_of(teacher))}) than the data in "
                f"{config.data.root} ({len(task.labels)}); train it on the same data"
            )
    set_image_size(config.image_size or model.config.image_size, teacher)  # it sees the pictures of the model
    hidden = config.distillation.hidden_weight > 0
    if hidden and teacher.config.hidden_size != model.config.hidden_size:
        raise InputError(
            f"distillation.hidden_weight needs hidden states of one width; teacher {config.teacher} has "
            f"{teacher.config.hidden_size}, {config.model} {model.config.hidden_size}"
        )
    return Teacher(patch(teacher, NoReduction()), task, hidden)
