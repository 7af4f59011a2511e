"""CLIP's activation in one pass, against transformers' own."""

import pytest
import torch
from kernels.cases import DEVICE
from transformers.activations import QuickGELUActivation

from pumer import kernels
from pumer.kernels import operators


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (2, 2049), (0, 4)])
def test_it_is_transformers_activation(shape, dtype):
    x = (4 * torch.randn(shape)).to(DEVICE, dtype)
    near = 1e-6 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(kernels.quick_gelu(x), QuickGELUActivation()(x), atol=near, rtol=near)
    apart = torch.stack([x, x], dim=-1)[..., 0]
    assert torch.equal(kernels.quick_gelu(apart), kernels.quick_gelu(x))


def test_opcheck():
    torch.library.opcheck(operators.quick_gelu, (torch.randn(3, 4, device=DEVICE),))
