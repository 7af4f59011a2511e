"""Distillation: the reduced model imitates logits (section 4 of the paper) and hidden states of the unreduced one."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.functional import kl_div, layer_norm

from pumer.backbones import roots
from pumer.functional import gather_tokens
from pumer.reducers.tables import ranks
from pumer.settings.train import DistillationConfig
from pumer.tokens import Tokens


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) over the softmax of the logits (B, A), averaged over the batch; only the student learns.

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
    """`task_weight` x task loss + `weight` x KL(teacher || student) of logits (B, A), as the paper trains."""
    config = config or DistillationConfig()
    return config.task_weight * task_loss + config.weight * divergence(student, teacher, config.temperature)


@contextmanager
def final_tokens(model: nn.Module) -> Iterator[list[Tokens]]:
    """Collect the tokens that leave the last cross-modal layer of a patched model, in a `with` block.

    The list gets one stream per run of the encoder, text first; a model for pairs of images runs it twice.
    """
    found: list[Tokens] = []

    def collect(module: nn.Module, inputs: object, output: tuple[object, ...]) -> None:
        found.extend(part for part in output if isinstance(part, Tokens))

    handles = [family.encoders(root)["fusion"].register_forward_hook(collect) for root, family in roots(model)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def hidden_divergence(student: Tokens, teacher: Tokens) -> Tensor:
    """Mean squared difference between the student's final tokens (B, N, D) and the teacher's at their places.

    A token is compared with the teacher's state of the input token it is; a merged one with the mean over the input
    tokens it is made of, each counted once. Tokens that the student pruned or hides from its attention, and padding,
    are left out. Both sides go through a LayerNorm without weights first, so that neither scale nor offset counts.
    The mean is over the tokens of an example, then over the batch.
    """
    own, others = student.source, teacher.source
    inputs = min(own.shape[1], others.shape[1])  # image buffers differ in length, not in order
    states = gather_tokens(teacher.states.detach().float(), others[:, :inputs].clamp(min=0))
    slots = ranks(student.size.shape[1], student.size.device)
    share = (own[:, None, :inputs] == slots[:, None]).float()
    members = share.sum(dim=-1)
    target = (share / members.clamp(min=1)[:, :, None]) @ states
    error = (_normalised(student.states.float()) - _normalised(target)).square().mean(dim=-1)
    kept = (members > 0).float() * _attended(student)
    return ((error * kept).sum(dim=-1) / kept.sum(dim=-1).clamp(min=1)).mean()


def _attended(tokens: Tokens) -> Tensor:
    """``(B, N)``: 1 where attention looks, nearly 0 for what a method that learns to prune hides from it."""
    if tokens.bias is None:
        return tokens.mask.float()
    return tokens.bias[:, 0, 0].detach().float().exp().clamp(max=1.0)


def _normalised(states: Tensor) -> Tensor:
    return layer_norm(states, states.shape[-1:])
