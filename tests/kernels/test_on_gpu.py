"""What only a GPU shows: real barriers, tensor cores on bfloat16, the same bits every time, capture into a graph."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels import cases, oracle
from kernels.test_attention import case as attention_case
from kernels.test_attention import definition as attention_definition
from kernels.test_compact import case as compact_case
from kernels.test_compact import loop as compact_loop
from tiny import max_examples

from pumer import kernels

pytestmark = pytest.mark.gpu

VILT = {"T": 32, "V": 145, "H": 12, "Dh": 64, "prune": 0.1, "merge": 0.3, "merge_text": 0.2}
METER = {"T": 32, "V": 577, "H": 12, "Dh": 64, "prune": 0.2, "merge": 0.2, "merge_text": 0.2, "streams": 2}


BUCKETS = (
    {"T": 17, "V": 61, "H": 3, "Dh": 64, "prune": 0.3, "merge": 0.3, "merge_text": 0.3, "streams": 1},
    {"T": 17, "V": 300, "H": 3, "Dh": 64, "prune": 0.5, "merge": 0.3, "merge_text": 0.9, "streams": 2},
)
"""Few shapes, because each costs seconds of compiling; lengths differ from sample to sample."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bucket", BUCKETS)
@max_examples(20)
@given(seed=st.integers(0, 2**31), coarse=st.booleans())
def test_decisions_and_states(dtype, bucket, seed, coarse):
    given = bucket | {"dtype": dtype, "seed": seed, "B": 4, "coarse": coarse}
    weighted = bucket["streams"] == 2
    case = cases.make(**given)
    code, following = case.decide()
    x, size, weight = case.states(given["seed"], dtype=dtype, weighted=weighted)
    x = torch.where((code == oracle.GONE)[:, :, None], torch.nan, x)
    streams = (x, None) if given["streams"] == 1 else (x[:, : case.T], x[:, case.T :])
    y, z, new_size, whole, *_ = case.apply(code, following, *streams, size, weight, True, dtype)
    near = 1e-6 if dtype == torch.float32 else 1e-2
    for b in range(len(code)):
        wanted, lengths, choice = oracle.decide(case, b)
        assert following[b].tolist() == lengths
        assert code[b].tolist() == wanted or choice.near, choice
        want = oracle.apply(x[b], size[b], (weight if weighted else size)[b], code[b].tolist(), case.Kt + case.Kv, True)
        torch.testing.assert_close(torch.cat([y, z], 1)[b].double(), want[0], atol=near, rtol=near)
        torch.testing.assert_close(new_size[b].double(), want[1])
        torch.testing.assert_close(whole[b].double(), want[2])


def both(case, x, size):
    """A function of the states that decides and applies on the GPU."""
    tensors = case.arguments()
    streams = (x, None) if case.key.shape[2] == case.T + case.V else (x[:, : case.T], x[:, case.T :])

    def run():
        code, following = kernels.decide(*tensors)
        outputs = kernels.apply(*streams, size, None, code, following, case.Kt, case.Kv, True, x.dtype)
        return [code, following, *outputs]

    return run


def same(a, b):
    return all(torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("shape", [VILT, METER])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_every_time_and_in_a_cuda_graph(shape, dtype):
    case = cases.make(seed=0, B=16, dtype=dtype, **shape)
    x, size, _ = case.states(0, D=768, dtype=dtype)
    run = both(case, x.cuda(), size.cuda())
    first = run()
    for _ in range(20):
        assert same(first, run())
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for y in captured:
        y.zero_()
    graph.replay()
    assert same(first, captured)
    for b in range(16):
        wanted, _, choice = oracle.decide(case, b)
        assert first[0][b].tolist() == wanted or choice.near


def test_long_streams_on_a_gpu():
    case = cases.make(seed=1, B=1, T=40, V=2900, prune=0.3, merge=0.3, merge_text=0.2)
    code, _ = case.decide()
    wanted, _, choice = oracle.decide(case, 0)
    assert code[0].tolist() == wanted or choice.near


@pytest.mark.parametrize("shape", [VILT, METER])
def test_the_batch_changes_no_bit(shape):
    """Blocks are cut by the batch; decisions of a sample are the same in any, ties and near ties as well."""
    case = cases.make(seed=2, B=96, dtype=torch.bfloat16, full=True, **shape)
    tensors = case.arguments()
    together, _ = kernels.decide(*tensors)
    for b in range(0, 96, 5):
        alone = [x[b : b + 1] if n < 5 and x is not None else x for n, x in enumerate(tensors)]
        assert torch.equal(kernels.decide(*alone)[0][0], together[b])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_on_tensor_cores(dtype):
    for B, H, Q, N in ((2, 12, 177, 177), (2, 12, 32, 577), (1, 12, 118, 118)):
        query, key, value, bias = attention_case(0, B, H, Q, N, 64, dtype)
        y = kernels.attention(query, key, value, bias)
        wanted = attention_definition(query, key, value, bias)
        near = 2e-3 if dtype == torch.float16 else 2e-2
        torch.testing.assert_close(y.double(), wanted, atol=near, rtol=near)
        assert torch.equal(y, kernels.attention(query, key, value, bias))


@pytest.mark.parametrize("T", [32, 600])
def test_compact_on_a_gpu(T):
    states, mask, image_mask = compact_case(0, 8, T, 577, D=768, dtype=torch.bfloat16)
    mask[0], mask[1] = False, True
    states = states.cuda().requires_grad_()
    y, lengths = kernels.compact(states, mask.cuda(), image_mask.cuda())
    wanted, counts = compact_loop(states.detach().cpu(), mask, image_mask)
    assert torch.equal(y.cpu(), wanted) and torch.equal(lengths.cpu(), counts)
    (gradient,) = torch.autograd.grad(y, states, y.detach())
    assert torch.equal(gradient, states.detach())
