"""The operators as torch sees them: schemas, shapes without data, one graph, and when they are used at all."""

import subprocess
import sys

import pytest
import torch
from kernels import cases

from pumer import kernels
from pumer.kernels import operators


def small(**given):
    return cases.make(seed=0, B=2, T=3, V=6, H=1, prune=0.3, merge=0.3, merge_text=0.4, **given)


def test_opcheck_of_decide():
    torch.library.opcheck(operators.decide, small().arguments())
    torch.library.opcheck(operators.decide, small(streams=2).arguments())


@pytest.mark.parametrize("streams", [1, 2])
def test_opcheck_of_apply(streams):
    case = small(streams=streams)
    code, following = case.decide()
    x, size, weight = case.states(0, D=16, weighted=streams == 2)
    x = x.nan_to_num()
    streams_of = (x, None) if streams == 1 else (x[:, :3].clone(), x[:, 3:].clone())
    tensors = (None if t is None else t.to(cases.DEVICE) for t in (*streams_of, size, weight, code, following))
    arguments = (*(t if t is None else t.detach() for t in tensors), case.Kt, case.Kv, True, torch.float16)
    arguments[0].requires_grad_()
    torch.library.opcheck(operators.apply, arguments)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_graph_with_its_gradient(backend):
    case = small()
    x, size, _ = case.states(0, D=16)
    x, size = x.nan_to_num().to(cases.DEVICE).requires_grad_(), size.to(cases.DEVICE)
    arguments = case.arguments()

    def reduce(x):
        code, following = kernels.decide(*arguments)
        y, _, new_size, _, bias, _ = kernels.apply(
            x * 2, None, size, None, code, following, case.Kt, case.Kv, True, torch.float32
        )
        return y.sin(), new_size, bias

    wanted = reduce(x)
    got = torch.compile(reduce, backend=backend, fullgraph=True)(x)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)
    assert not got[1].requires_grad and not got[2].requires_grad
    torch.testing.assert_close(
        torch.autograd.grad(got[0].sum(), x)[0], torch.autograd.grad(wanted[0].sum(), x)[0], atol=2e-6, rtol=2e-6
    )


def test_a_graph_asks_whether_they_are_usable():
    def branch(x):
        return x + 1 if kernels.usable(x) else x - 1

    assert torch.compile(branch, backend="eager", fullgraph=True)(torch.zeros(2)).tolist() == [-1, -1]


def test_never_for_a_cpu_and_never_if_switched_off(monkeypatch):
    class OnCuda:
        is_cuda, dtype, device = True, torch.float16, 0

        def get_device(self):
            return self.device

    monkeypatch.setattr(kernels, "_INSTALLED", True)
    monkeypatch.setattr(kernels, "_SUPPORTED", {0: True, 1: False})
    assert not kernels.usable(torch.zeros(1))
    assert kernels.usable(OnCuda())
    OnCuda.device = 1  # a GPU before Ampere, or of another make
    assert not kernels.usable(OnCuda())
    OnCuda.device = 0
    OnCuda.dtype = torch.float64
    assert not kernels.usable(OnCuda())
    OnCuda.dtype = torch.float32
    try:
        kernels.enable(False)
        assert not kernels.usable(OnCuda())
    finally:
        kernels.enable(True)
    monkeypatch.setattr(kernels, "_INSTALLED", False)
    assert not kernels.usable(OnCuda())


def test_the_environment_switches_them_off_and_importing_needs_no_triton():
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import importlib.util; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'triton' else find(name, *a)\n"
        "from pumer import kernels; print(kernels._enabled, kernels._INSTALLED)"
    )
    for value, wanted in (("0", "False False"), ("1", "True False")):
        environment = {"PUMER_KERNELS": value, "PATH": ""}
        found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert found.stdout.strip() == wanted, found.stderr
