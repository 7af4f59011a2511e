"""Attention with a bias for each key, against the definition."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from kernels.cases import DEVICE
from tiny import max_examples

from pumer import kernels
from pumer.kernels import flash, operators


def case(seed, B, H, Q, N, Dh, dtype, biased=True):
    """Random projections as a layer makes them, and a bias with hidden keys."""
    random = torch.Generator().manual_seed(seed)

    def projected(n):
        return torch.randn(B, n, H * Dh, generator=random).to(DEVICE, dtype).view(B, n, H, Dh).transpose(1, 2)

    bias = torch.randn(B, 1, 1, N, generator=random)
    bias = bias.masked_fill(torch.rand(B, 1, 1, N, generator=random) < 0.3, -torch.inf).to(DEVICE, dtype)
    return projected(Q), projected(N), projected(N), bias if biased else None


def definition(query, key, value, bias):
    x = query.double() @ key.double().mT * query.shape[3] ** -0.5
    x = (x if bias is None else x + bias.double()).softmax(-1)
    return x.nan_to_num(0.0) @ value.double()


def check(*tensors):
    y = kernels.attention(*tensors)
    near = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[y.dtype]
    torch.testing.assert_close(y.double(), definition(*tensors), atol=near, rtol=near)
    assert y.transpose(1, 2).is_contiguous() and y.dtype == tensors[0].dtype


@max_examples(20)
@given(
    st.integers(0, 2**31),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 150),
    st.integers(1, 150),
    st.sampled_from([16, 32, 64, 128]),
    st.sampled_from([torch.float32, torch.float16]),
    st.booleans(),
)
@example(0, 1, 2, 145, 177, 64, torch.float16, True)
@example(0, 1, 1, 32, 577, 64, torch.float32, True)
def test_it_is_softmax_attention(seed, B, H, Q, N, Dh, dtype, biased):
    check(*case(seed, B, H, Q, N, Dh, dtype, biased))


@pytest.mark.parametrize("cut", flash.CONFIGURATIONS)
def test_every_configuration(cut):
    tensors = case(1, 1, 1, 130, 140, 32, torch.float16)
    y = torch.empty(1, 130, 1, 32, dtype=torch.float16, device=DEVICE).transpose(1, 2)
    flash.launch(*tensors, y, cut)
    torch.testing.assert_close(y.double(), definition(*tensors), atol=2e-3, rtol=2e-3)


def test_a_row_that_sees_nothing_is_zero_and_blocks_may_be_hidden():
    query, key, value, bias = case(2, 2, 2, 70, 200, 16, torch.float32)
    bias[0] = -torch.inf
    bias[1, ..., :130] = -torch.inf  # the first blocks: the running maximum starts late
    check(query, key, value, bias)
    assert not kernels.attention(query, key, value, bias)[0].any()


def test_slices_of_one_projection_and_a_padded_bias():
    B, N, H, Dh = 2, 37, 2, 16
    query, key, value = torch.randn(B, N, 3, H, Dh, device=DEVICE).transpose(1, 3).unbind(2)
    bias = torch.zeros(B, 1, 1, 48, dtype=torch.float16, device=DEVICE)[..., :N]
    check(query, key, value, bias)


def test_opcheck_and_one_graph():
    tensors = case(3, 1, 2, 5, 9, 16, torch.float32)
    torch.library.opcheck(operators.attention, tensors)
    got = torch.compile(lambda *x: kernels.attention(*x) + 1, backend="aot_eager", fullgraph=True)(*tensors)
    torch.testing.assert_close(got, kernels.attention(*tensors) + 1)
