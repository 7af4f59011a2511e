"""Kernel launches, host syncs and kernel time on a GPU, of a whole forward and of each reduction.

Read from a trace of torch's profiler, in which every launch has the number of the kernel that it starts. Without a GPU
all counts are zero.
"""

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from pumer.profiling.timing import REDUCE, reason, watched

FORWARD = "pumer::forward"
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
HOST_CALLS = ("cuda_runtime", "cuda_driver")
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize", "cudaMemcpy")
MICRO = 1e-6


def observe(model: nn.Module, inputs: dict[str, Tensor], forwards: int = 3) -> dict[str, Any]:
    """Count the GPU work of forwards of a patched model.

    Args:
        model: Patched; it is the same afterwards.
        inputs: Keyword arguments of a forward.
        forwards: How many; all counts are means.

    Returns:
        Per forward ``launches`` (kernels, copies, fills), ``syncs`` (calls that wait), ``seconds`` (of kernels) and
        ``reductions``; per reduction, decision and its application, ``reduction_launches``, ``reduction_seconds`` and
        ``reduction_kernels`` (seconds by name); ``sync_error``: see `sync_error`.
    """
    with torch.inference_mode():
        model(**inputs)
        found = whole_forward(traced(model, inputs, forwards), forwards)
        ranges = _Ranges()
        with watched(model, ranges.start, ranges.stop):  # apart, because watching may itself copy something
            model(**inputs)
            found |= reductions_of(traced(model, inputs, forwards), forwards)
        return found | {"sync_error": sync_error(model, inputs)}


def traced(model: nn.Module, inputs: dict[str, Tensor], forwards: int) -> list[dict[str, Any]]:
    """Events of a trace in Chrome's format."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with profile(activities=activities) as profiler:
        for _ in range(forwards):
            with record_function(FORWARD):
                model(**inputs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events: list[dict[str, Any]] = json.loads(path.read_text(), strict=False)["traceEvents"]
    return events


def whole_forward(events: list[dict[str, Any]], forwards: int) -> dict[str, Any]:
    """Launches, syncs and kernel seconds of one forward."""
    work = _work_within(events, FORWARD)
    waits = [event for event in _calls_within(events, FORWARD) if event["name"] in WAITS]
    return {
        "launches": len(work) / forwards,
        "syncs": len(waits) / forwards,
        "seconds": sum(event["dur"] for event in work) * MICRO / forwards,
    }


def reductions_of(events: list[dict[str, Any]], forwards: int) -> dict[str, Any]:
    """Launches and kernel seconds of one reduction."""
    count, work = len(_ranges(events, REDUCE)), _work_within(events, REDUCE)
    kernels: Counter[str] = Counter()
    for event in work:
        kernels[event["name"][:80]] += event["dur"] * MICRO / max(count, 1)
    return {
        "reductions": count / forwards,
        "reduction_launches": len(work) / max(count, 1),
        "reduction_seconds": sum(kernels.values()),
        "reduction_kernels": dict(kernels.most_common(12)),
    }


def sync_error(model: nn.Module, inputs: dict[str, Tensor]) -> str | None:
    """Torch's report of where a forward makes the host wait for the GPU; None if nowhere, or without a GPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(**inputs)
    except RuntimeError as error:
        return reason(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


class _Ranges:
    """Marks the parts in a trace."""

    def __init__(self) -> None:
        self.open: dict[str, AbstractContextManager[Any]] = {}

    def start(self, part: str) -> None:
        self.open[part] = record_function(part)
        self.open[part].__enter__()

    def stop(self, part: str) -> None:
        self.open.pop(part).__exit__(None, None, None)


def _ranges(events: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    found = [event for event in events if event.get("cat") == "user_annotation" and event["name"] == name]
    return [(event["ts"], event["ts"] + event["dur"]) for event in found]


def _calls_within(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Calls of the host to the GPU inside the ranges of this name."""
    ranges = _ranges(events, name)
    calls = [event for event in events if event.get("cat") in HOST_CALLS]
    return [call for call in calls if any(start <= call["ts"] <= end for start, end in ranges)]


def _work_within(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The GPU's work that these calls launched, whenever it ran."""
    launched = {_number(call) for call in _calls_within(events, name)} - {None}
    return [event for event in events if event.get("cat") in DEVICE_WORK and _number(event) in launched]


def _number(event: Mapping[str, Any]) -> int | None:
    number: int | None = event.get("args", {}).get("correlation")
    return number
