"""Distillation: the reduced model imitates the logits of the unreduced one (section 4 of the paper)."""

from torch import Tensor
from torch.nn.functional import kl_div

from pumer.settings.train import DistillationConfig


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) over the softmax of the logits, averaged over the batch.

    Args:
        student: logits (B, A) that learn.
        teacher: logits (B, A) to imitate; no gradient flows into them.
        temperature: see `DistillationConfig`.

    Returns:
        A scalar in float32 and nats; 0 when both give the same distribution.

    Example:
        >>> import torch
        >>> divergence(torch.zeros(1, 2), torch.zeros(1, 2)).item()
        0.0
    """
    student_log = (student.float() / temperature).log_softmax(dim=-1)
    teacher_log = (teacher.detach().float() / temperature).log_softmax(dim=-1)
    return kl_div(student_log, teacher_log, reduction="batchmean", log_target=True) * temperature**2


def distillation_loss(
    task_loss: Tensor, student: Tensor, teacher: Tensor, config: DistillationConfig | None = None
) -> Tensor:
    """`task_weight` x task loss + `weight` x KL(teacher || student), as the paper trains its reduced models.

    Args:
        task_loss: scalar loss of the student on the labels.
        student: logits (B, A) of the reduced model.
        teacher: logits (B, A) of the unreduced model.
        config: weights and temperature; the paper's (all 1) by default.
    """
    config = config or DistillationConfig()
    return config.task_weight * task_loss + config.weight * divergence(student, teacher, config.temperature)
