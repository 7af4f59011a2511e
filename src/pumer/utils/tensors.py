"""What numbers can be used: weights that are finite, answers that are numbers."""

from collections.abc import Iterable

from torch import Tensor

from pumer.errors import InputError


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity; integers hold none."""
    return [name for name, x in tensors if x.is_floating_point() and not x.is_meta and not bool(x.isfinite().all())]


def numbers(answers: Tensor) -> Tensor:
    """What a model answered, unchanged.

    Args:
        answers: logits or scores, of any shape.

    Raises:
        InputError: If one is NaN: the best of them would be a column that was not chosen.
    """
    if bool(answers.isnan().any()):
        raise InputError("the model's answers are not numbers (NaN); give a model with smaller weights, or in float32")
    return answers
