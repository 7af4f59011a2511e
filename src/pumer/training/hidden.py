"""Distillation of hidden states: the tokens a reduced model kept, against the teacher's at the same places."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.functional import layer_norm

from pumer.backbones import BACKBONES
from pumer.functional import gather_tokens
from pumer.reducers.tables import ranks
from pumer.tokens import Tokens


@contextmanager
def final_tokens(model: nn.Module) -> Iterator[list[Tokens]]:
    """Collect the tokens that leave the last cross-modal layer, in the forwards of a `with` block.

    Args:
        model: patched, not compiled.

    Yields:
        A list that gets one stream per run of the encoder, text first; a model that sees two images runs it twice.
    """
    found: list[Tokens] = []

    def take(module: nn.Module, inputs: object, output: tuple[object, ...]) -> None:
        found.extend(part for part in output if isinstance(part, Tokens))

    roots = [
        (module, backbone)
        for module in model.modules()
        for backbone in BACKBONES.values()
        if isinstance(module, backbone.classes[backbone.root])
    ]
    handles = [backbone.encoders(root)["fusion"].register_forward_hook(take) for root, backbone in roots]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def hidden_divergence(student: Tokens, teacher: Tokens) -> Tensor:
    """Mean squared difference of what the student's tokens hold from what the teacher has at their places.

    A token is compared with the teacher's state of the input token it is; a merged one with the mean over the input
    tokens it is made of, each counted once. What the student pruned or hides from its attention, and padding, is left
    out. Both sides go through a
    LayerNorm without weights first, so that neither scale nor offset counts, and that of either model does not matter.

    Args:
        student: final tokens of the reduced model, with states (B, N, D).
        teacher: final tokens of the unreduced one on the same batch; no gradient flows into them.

    Returns:
        A scalar in float32: the mean over the tokens of an example, then over the batch.
    """
    own, taught = student.source, teacher.source
    inputs = min(own.shape[1], taught.shape[1])  # image buffers differ in length, not in order
    seen = gather_tokens(teacher.states.detach().float(), taught[:, :inputs].clamp(min=0))
    slots = ranks(student.size.shape[1], student.size.device)
    share = (own[:, None, :inputs] == slots[:, None]).float()
    members = share.sum(dim=-1)
    target = (share / members.clamp(min=1)[:, :, None]) @ seen
    error = (_normalised(student.states.float()) - _normalised(target)).square().mean(dim=-1)
    kept = (members > 0).float() * _attended(student)
    return ((error * kept).sum(dim=-1) / kept.sum(dim=-1).clamp(min=1)).mean()


def _attended(tokens: Tokens) -> Tensor:
    """``(B, N)``: 1 for what attention sees, nearly 0 for what a method that learns to prune hides from it."""
    if tokens.bias is None:
        return tokens.mask.float()
    return tokens.bias[:, 0, 0].detach().float().exp().clamp(max=1.0)


def _normalised(states: Tensor) -> Tensor:
    return layer_norm(states, states.shape[-1:])
