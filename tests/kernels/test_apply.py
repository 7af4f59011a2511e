"""States, sizes and bias after a decision, and their gradient, against loops over one sample."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels import cases, oracle
from kernels.cases import arguments
from tiny import max_examples

from pumer import kernels


def carry_out(case, code, following, x, size, weight, streams, proportional=True, bias_dtype=torch.float32):
    """`kernels.apply`, with its outputs as if there were one stream and without what only aligns."""
    first, second = (x, None) if streams == 1 else (x[:, : case.T], x[:, case.T :])
    y, z, new_size, whole, bias, more = case.apply(
        code, following, first, second, size, weight, proportional, bias_dtype
    )
    slots = case.Kt + case.Kv if streams == 1 else case.Kt
    assert bias.shape[3] % 16 == 0 and more.shape[3] % 16 == 0 and bias.dtype == bias_dtype
    assert bias[..., slots:].isneginf().all()
    if streams == 2:
        assert more[..., case.Kv :].isneginf().all()
        bias = torch.cat([bias[..., :slots], more[..., : case.Kv]], 3)
    else:
        assert z.numel() == more.numel() == 0
        bias = bias[..., :slots]
    return torch.cat([y, z], 1), new_size, whole, bias[:, 0, 0]


@max_examples(60)
@given(arguments(words=8, patches=14), st.booleans(), st.booleans())
def test_outputs_are_those_of_the_loops(given, weighted, proportional):
    case = cases.make(**given)
    code, following = case.decide()
    dtype, streams = given["dtype"], given["streams"]
    x, size, weight = case.states(given["seed"], dtype=dtype, weighted=weighted)
    x = torch.where((code == oracle.GONE)[:, :, None], torch.nan, x)  # it must not be read
    outputs = carry_out(case, code, following, x, size, weight, streams, proportional, dtype)
    for b in range(len(code)):
        wanted = oracle.apply(
            x[b], size[b], (weight if weighted else size)[b], code[b].tolist(), case.Kt + case.Kv, proportional
        )
        for name, got, want in zip(("states", "size", "whole", "bias"), outputs, wanted, strict=True):
            near = 1e-6 if dtype == torch.float32 or name in ("size", "whole") else 1e-3
            torch.testing.assert_close(got[b].double(), want, atol=near, rtol=near, msg=name)
        for n, c in enumerate(code[b].tolist()):
            if c % 2 == 0 and c != oracle.GONE and c + 1 not in code[b]:
                assert torch.equal(outputs[0][b, c // 2], x[b, n])


@max_examples(20)
@given(arguments(words=6, patches=10), st.booleans())
def test_gradient_is_each_tokens_share(given, weighted):
    case = cases.make(**given)
    code, following = case.decide()
    x, size, weight = case.states(given["seed"], weighted=weighted)
    x = x.nan_to_num().requires_grad_()
    y, *others = carry_out(case, code, following, x, size, weight, given["streams"])
    assert not any(other.requires_grad for other in others)
    upstream = torch.randn(y.shape)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    wanted = torch.zeros_like(x)
    weight = size if weight is None else weight
    for b in range(len(code)):
        for n, c in enumerate(code[b].tolist()):
            if c != oracle.GONE:
                members = (code[b] // 2 == c // 2).nonzero()[:, 0]
                wanted[b, n] = upstream[b, c // 2] * weight[b, n] / weight[b, members].sum()
    torch.testing.assert_close(gradient, wanted, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("learned", ["text", "image"])
def test_gradient_of_only_one_stream(learned):
    case = cases.make(seed=1, B=1, T=6, V=10, merge=0.4, merge_text=0.4, streams=2, full=True)
    code, following = case.decide()
    x, size, _ = case.states(1)
    text, image = x[:, :6].clone(), x[:, 6:].clone()
    wanted = text if learned == "text" else image
    wanted.requires_grad_()
    y, z, *_ = case.apply(code, following, text, image, size, None)
    (gradient,) = torch.autograd.grad((y if learned == "text" else z).sum(), wanted)
    assert gradient.sum() == pytest.approx(24 * (case.Kt if learned == "text" else case.Kv), rel=1e-5)


def test_many_tokens_in_one_slot_are_added_in_order():
    """More than two members: their shares are of the whole, whatever reducer chose them; int64 codes."""
    x, size = torch.randn(1, 40, 16), torch.ones(1, 40)
    code = torch.ones(1, 40, dtype=torch.int64)
    code[0, 7] = 0
    code[0, 39] = 2
    tensors = (t.to(cases.DEVICE) for t in (code, torch.tensor([[0, 2]])))
    outputs = kernels.apply(x.to(cases.DEVICE), None, size.to(cases.DEVICE), None, *tensors, 0, 2, True, torch.float32)
    y, new_size = outputs[0].cpu(), outputs[2].cpu()
    torch.testing.assert_close(y[0, 0], x[0, :39].mean(0), atol=1e-6, rtol=1e-6)
    assert torch.equal(y[0, 1], x[0, 39]) and new_size.tolist() == [[39.0, 1.0]]


def test_streams_longer_than_one_scan():
    case = cases.make(seed=2, B=1, T=3, V=300, merge=0.4)
    code, following = case.decide()
    x, size, _ = case.states(2, D=16)
    y, new_size, whole, bias = carry_out(case, code, following, x, size, None, 1)
    wanted = oracle.apply(x[0], size[0], size[0], code[0].tolist(), case.Kt + case.Kv, True)
    for got, want in zip((y, new_size, whole, bias), wanted, strict=True):
        torch.testing.assert_close(got[0].double(), want, atol=1e-6, rtol=1e-6)
