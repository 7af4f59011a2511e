import pytest
import torch

from pumer.utils.errors import InputError
from pumer.utils.tensors import not_finite, numbers

NAN, INF = float("nan"), float("inf")


class Quantised(torch.Tensor):
    """A tensor subclass that knows few operators, as those of quantisation libraries."""

    def isfinite(self):
        raise NotImplementedError


def test_weights_that_are_not_finite_are_named():
    tensors = {
        "fine": torch.tensor([1e38, -1e38, 0.0]),
        "nan": torch.tensor([0.0, NAN]),
        "inf": torch.tensor([[INF]]),
        "half": torch.tensor([1e38]).half(),
        "integers": torch.tensor([2**60]),
        "float8": torch.full((2,), NAN).to(torch.float8_e4m3fn),
        "parameter": torch.nn.Parameter(torch.tensor([INF])),
        "subclass": torch.tensor([NAN]).as_subclass(Quantised),
        "nothing": torch.ones(3, device="meta"),
    }
    assert not_finite(tensors.items()) == ["nan", "inf", "half", "parameter"]


def test_answers_must_be_numbers():
    answers = torch.tensor([[1.0, -INF], [INF, 0.0]])
    assert numbers(answers) is answers
    with pytest.raises(InputError, match="NaN"):
        numbers(torch.tensor([[1.0, NAN]]))
