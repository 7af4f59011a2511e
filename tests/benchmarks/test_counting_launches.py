"""Launches, syncs and kernel time, read from traces."""

import pytest
import torch

import pumer
from benchmarks import launches
from pumer.profiling.inputs import inputs_for


def event(cat, name, ts, dur, correlation=None):
    args = {} if correlation is None else {"correlation": correlation}
    return {"cat": cat, "name": name, "ts": ts, "dur": dur, "args": args}


EVENTS = [
    {"ph": "M", "name": "process_name", "args": {}},
    event("user_annotation", launches.FORWARD, 0, 100),
    event("gpu_user_annotation", launches.FORWARD, 0, 500),
    event("user_annotation", "reduce", 10, 20),
    event("user_annotation", "reduce", 50, 20),
    event("cuda_runtime", "cudaLaunchKernel", 5, 1, 1),
    event("cuda_driver", "cuLaunchKernelEx", 12, 1, 2),
    event("cuda_runtime", "cudaMemcpyAsync", 15, 1, 3),
    event("cuda_runtime", "cudaStreamSynchronize", 16, 1, 4),
    event("cuda_driver", "cuLaunchKernel", 55, 1, 5),
    event("cuda_runtime", "cudaDeviceSynchronize", 150, 1),  # the profiler's own
    event("cuda_runtime", "cudaLaunchKernel", 160, 1, 6),
    event("kernel", "gemm", 6, 7, 1),
    event("kernel", "select_kernel", 200, 3, 2),  # later than the range that launched it
    event("gpu_memcpy", "Memcpy HtoD", 205, 2, 3),
    event("kernel", "select_kernel", 210, 5, 5),
    event("kernel", "outside", 220, 9, 6),
]


def test_a_launch_belongs_to_where_the_host_made_it():
    whole = launches.whole_forward(EVENTS, forwards=1)
    assert (whole["launches"], whole["syncs"]) == (4, 1)
    assert whole["seconds"] == pytest.approx(17e-6)
    each = launches.reductions_of(EVENTS, forwards=1)
    assert (each["reductions"], each["reduction_launches"]) == (2, 1.5)
    assert each["reduction_seconds"] == pytest.approx(5e-6)
    assert each["reduction_kernels"] == pytest.approx({"select_kernel": 4e-6, "Memcpy HtoD": 1e-6})


def test_reductions_are_found_in_a_real_trace(tiny_vilt):
    model = pumer.patch(pumer.load(tiny_vilt), pumer.PuMerConfig(layers=(0, 2), merge_ratio=0.3))
    inputs = inputs_for(model, 32, 12, batch=2)
    before = model(**inputs).logits
    found = launches.observe(model, inputs, forwards=2)
    assert found["reductions"] == 2
    assert found["sync_error"] is None
    assert torch.equal(model(**inputs).logits, before)
