"""What numbers can be used: weights that are finite, answers that are numbers."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

from pumer.utils.errors import InputError

_CHECKED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity; quantised ones (float8 among them) are not looked at."""
    found = []
    for name, x in tensors:
        plain = type(x) in (Tensor, Parameter) or hasattr(x, "to_local")  # which a DTensor of FSDP has
        if plain and x.dtype in _CHECKED and not x.is_meta and not bool(x.isfinite().all()):
            found.append(name)
    return found


def numbers(answers: Tensor) -> Tensor:
    """Logits or scores, unchanged; NaN is refused, because the best of them would be a column that was not chosen."""
    if bool(answers.isnan().any()):
        raise InputError("the model's answers are not numbers (NaN); give a model with smaller weights, or in float32")
    return answers


def best_device() -> torch.device:
    """The GPU or other accelerator where there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
