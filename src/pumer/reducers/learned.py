"""What reducers with weights share: a forward of training may leave losses with them, beside the task's own."""

from typing import Any

import torch
from torch import Tensor, nn

_RUNS = 2
"""Losses that a reducer remembers: a model for pairs of images runs twice in one forward."""


class LearnedReducer(nn.Module):
    """A reducer with weights, see `pumer.reducers.base.Reducer`."""

    def __init__(self) -> None:
        """Nothing is owed yet."""
        super().__init__()
        self.losses: tuple[Tensor, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out what the last forward owes."""
        return {**self.__dict__, "losses": ()}

    def enter(self, states: Tensor, image: Tensor) -> Tensor:
        """What it changes before the first layer of a decoder.

        Args:
            states: ``(B, N, D)``, the prompt.
            image: ``(B, N)`` bool, which tokens are those of images.

        Returns:
            ``(B, N, D)``.
        """
        return states

    def owe(self, loss: Tensor) -> None:
        """Add a loss, a scalar, to those of this forward."""
        self.losses = (*self.losses, loss)[-_RUNS:]


def take_losses(model: nn.Module) -> Tensor | None:
    """What the learned reducers of a model owe for the last forward of training.

    Returns:
        The mean of their losses, which are taken away; None if there are none.
    """
    found: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, LearnedReducer):
            found += module.losses
            module.losses = ()
    return torch.stack(found).mean() if found else None
