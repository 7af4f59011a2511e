"""Peak memory of one forward, in a process of its own (`python -m pumer.profiling.peak_memory`), weights apart.

On a CPU: peak resident memory during the forward minus resident memory just before it, after a forward of one example
that loads libraries and starts threads. The C library is set to return large blocks at once, so that this is what the
forward holds at its worst, not what an allocator hoards. On a GPU: the allocator's peak minus what it held before.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from pumer.backbones.image_size import set_image_size
from pumer.profiling.inputs import inputs_for
from pumer.profiling.limit import measured_reduction
from pumer.profiling.named_models import default_image_size, default_text_length, model_from, variant

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Job:
    """What is measured; None leaves the image size and text length to the model, and the threads to torch.

    `reduction` is as in ``reduction.json``, None for transformers' own forward. With `autograd` the forward keeps what
    a backward would need.
    """

    model: str
    reduction: dict[str, Any] | None
    batch: int
    autograd: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    image_size: int | None = None
    text_length: int | None = None
    threads: int | None = None
    slice_size: int | None = None


def peak_memory(job: Job) -> dict[str, int]:
    """Measure ``weights`` and ``activations`` in bytes, in a fresh process."""
    return measured_apart(["-m", __name__], asdict(job))


def measured_apart(program: Sequence[str], job: Mapping[str, Any]) -> dict[str, int]:
    """Run a program that measures memory in a fresh process whose C library returns large blocks at once.

    The arguments of Python name the program. It reads the job from stdin and writes its measurements to the last line
    of stdout, both as JSON. If it fails, a RuntimeError has the last line of its stderr.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, *program]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"measuring memory failed: {last}")
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(job: Job) -> dict[str, int]:
    """Measure in this process; `peak_memory` does it in a clean one."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    base = model_from(job.model)
    set_image_size(job.image_size, base)
    reduction = None if job.reduction is None else measured_reduction(job.reduction)
    model = variant(base, reduction, job.slice_size).to(device=job.device, dtype=getattr(torch, job.dtype))
    size = job.image_size or default_image_size(job.model, model)
    length = job.text_length or default_text_length(job.model, model)
    with torch.set_grad_enabled(job.autograd):
        activations = peak_of(model, lambda batch: inputs_for(model, size, length, batch), job.batch)
    return {"weights": bytes_of(model), "activations": activations}


def bytes_of(model: nn.Module) -> int:
    """Size of the weights and buffers."""
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def peak_of(model: Any, make_inputs: Callable[[int], dict[str, torch.Tensor]], batch: int) -> int:
    """Bytes that a forward of a batch holds at its worst beyond what was held before; a forward of one goes first."""
    model(**make_inputs(1))
    inputs = make_inputs(batch)
    kind = next(iter(inputs.values())).device.type
    before = resident(kind)
    output = model(**inputs)
    peak = peak_since(kind)
    del output
    return max(peak - before, 0)


def resident(device: str) -> int:
    """Bytes held now; starts a new peak."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    if CLEAR.exists():
        CLEAR.write_text("5")  # Linux: the peak starts again from what is resident now
    return int(psutil.Process().memory_info().rss)


def peak_since(device: str) -> int:
    """Highest number of bytes held since `resident`."""
    if device == "cuda":
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated())
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(kilobytes) * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(Job(**json.load(sys.stdin)))) + "\n")
