"""What the trainings of the small models share: optimiser, learning rate, a step, and the state in a file."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.pretrain_small.settings import TrainingConfig
from pumer.utils.errors import InputError
from pumer.utils.files import write_bytes


def optimizer_of(trainee: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW; biases and norms do not decay."""
    trained = [p for p in trainee.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if (p.dim() > 1) == decays], "weight_decay": config.weight_decay * decays}
        for decays in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), foreach=True)


def rate(config: TrainingConfig, step: int, progress: float, warm_up: int) -> float:
    """Learning rate: warm-up over so many steps, constant, then a cosine down.

    Args:
        config: With the peak and the progress at which it falls.
        step: From 0.
        progress: The fraction of the run that is over.
        warm_up: Steps.
    """
    fall = min(1.0, max(0.0, (progress - config.fall_at) / (1 - config.fall_at)))
    return config.lr * min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * (1 + cos(pi * fall)) / 2)


def update(
    optimizer: torch.optim.Optimizer, parts: Mapping[str, Tensor], weights: Mapping[str, float], rate: float
) -> None:
    """A step by the weighted sum of the parts of a loss, with gradients of norm 1 at most."""
    torch.stack([weights[name] * loss for name, loss in parts.items()]).sum().backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()


def follow(average: dict[str, float], parts: Mapping[str, Tensor], share: float) -> None:
    """Move running averages of the parts of a loss towards new ones by a share of the way."""
    for name, loss in parts.items():
        value = loss.item()
        average[name] = (1 - share) * average.get(name, value) + share * value


def listed(average: Mapping[str, float]) -> str:
    """The averages in a line."""
    return " ".join(f"{name} {value:.3f}" for name, value in average.items())


def save_state(path: Path, state: Mapping[str, object]) -> None:
    """Write a state atomically."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    write_bytes(path, content.getvalue())


@contextmanager
def saved_state(path: Path) -> Iterator[dict[str, Any]]:
    """What `save_state` wrote, to take up in a ``with`` block.

    Raises:
        InputError: If it is broken, or of a model of other sizes.
    """
    try:
        yield torch.load(path, weights_only=True)
    except Exception as error:  # whatever a broken file provokes
        reason = type(error).__name__
        raise InputError(
            f"{path} is no state of this run, or broken ({reason}); remove it, or give another out"
        ) from error
