"""Words moved to the front, and lengths, against a loop."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from kernels.cases import DEVICE
from tiny import max_examples

from pumer import kernels
from pumer.kernels import operators


def case(seed, B, T, V, D=24, dtype=torch.float32, share=0.6):
    """Random states, and masks with holes."""
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(B, T, generator=random) < share
    states = torch.randn(B, T, D, generator=random).to(dtype)
    return states, mask, None if V is None else torch.rand(B, V, generator=random) < share


def loop(states, mask, image_mask):
    out = torch.zeros_like(states)
    for b in range(len(states)):
        there = mask[b].tolist()
        for k, n in enumerate(sorted(range(len(there)), key=lambda n: not there[n])):
            out[b, k] = states[b, n]
    seen = torch.zeros(len(mask), dtype=torch.int64) if image_mask is None else image_mask.sum(1)
    return out, torch.stack([mask.sum(1), seen], 1)


def check(states, mask, image_mask):
    got = kernels.compact(*(x if x is None else x.to(DEVICE) for x in (states, mask, image_mask)))
    for a, b in zip(got, loop(states, mask, image_mask), strict=True):
        assert a.dtype == b.dtype and torch.equal(a.cpu(), b)


@max_examples(25)
@given(
    st.integers(0, 2**31),
    st.integers(1, 3),
    st.integers(1, 40),
    st.none() | st.integers(1, 300),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.sampled_from([0.0, 0.3, 0.9, 1.0]),
)
@example(0, 2, 9, 5, torch.bfloat16, 0.0)  # nothing but padding
@example(0, 1, 1024, 600, torch.float32, 0.5)
def test_real_words_come_first_in_order(seed, B, T, V, dtype, share):
    check(*case(seed, B, T, V, 24, dtype, share))


def test_left_padding_and_strided_inputs():
    states, mask, image_mask = case(0, 3, 12, 20)
    mask = torch.arange(12) >= torch.tensor([[0], [5], [11]])
    wide = torch.stack([states] * 2, 2)[:, :, 1]  # rows apart from each other
    assert not wide.is_contiguous()
    check(wide, mask, image_mask.T.contiguous().T)
    check(wide, mask[:1].expand(3, 12), image_mask)


def test_the_gradient_goes_back_to_where_a_word_came_from():
    states, mask, _ = case(1, 3, 10, None)
    mask[1] = False
    states = states.to(DEVICE).requires_grad_()
    y, lengths = kernels.compact(states, mask.to(DEVICE), None)
    assert not lengths.requires_grad
    upstream = torch.randn(y.shape)
    (gradient,) = torch.autograd.grad(y, states, upstream.to(DEVICE))
    wanted = torch.zeros_like(upstream)
    for b in range(3):
        wanted[b, mask[b]] = upstream[b, : mask[b].sum()]
        wanted[b, ~mask[b]] = upstream[b, mask[b].sum() :]
    assert torch.equal(gradient.cpu(), wanted)


def test_opcheck():
    for V in (None, 7):
        states, *masks = (x if x is None else x.to(DEVICE) for x in case(2, 2, 5, V, D=16))
        torch.library.opcheck(operators.compact, (states.requires_grad_(), *masks))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_graph_with_its_gradient(backend):
    states, mask, image_mask = (x.to(DEVICE) for x in case(3, 2, 6, 9, D=16))
    states = states.requires_grad_()

    def front(x):
        y, lengths = kernels.compact(x * 2, mask, image_mask)
        return y.sin(), lengths

    wanted, got = front(states), torch.compile(front, backend=backend, fullgraph=True)(states)
    torch.testing.assert_close(got, wanted)
    for y, _ in (wanted, got):
        (gradient,) = torch.autograd.grad(y.sum(), states)
        torch.testing.assert_close(gradient, (2 * (2 * states).cos()).detach())
