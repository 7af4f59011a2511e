"""Peak memory of an answer, weights apart; on a CPU in a process of its own (`python -m ...`), see `peak_memory`."""

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from pumer.profiling.generation import Decoding
from pumer.profiling.named_models import PREFIX, model_from, variant
from pumer.profiling.peak_memory import bytes_of, measured_apart, peak_since, resident
from pumer.profiling.prompts import prompt_for
from pumer.reducers import config_from_dict


@dataclass(frozen=True)
class PromptJob:
    """What is measured: a batch of prompts and some further tokens. `reduction` is as in ``reduction.json``."""

    model: str
    reduction: dict[str, Any] | None
    batch: int
    text_tokens: int
    image_tokens: int
    new_tokens: int
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None


def peak_memory(job: PromptJob, base: PreTrainedModel) -> dict[str, int]:
    """Bytes of ``weights``, and of what is held beside them at the worst, ``activations``, cache counted.

    Args:
        job: What is measured.
        base: Its model, which is taken on a GPU, where the allocator knows what it holds.
    """
    return measured_apart(["-m", __name__], asdict(job)) if job.device == "cpu" else measure(job, base)


def measure(job: PromptJob, base: PreTrainedModel) -> dict[str, int]:
    """Measure in this process."""
    model = variant(base, None if job.reduction is None else config_from_dict(job.reduction))
    sizes = job.text_tokens, job.image_tokens
    with torch.inference_mode():
        Decoding(model, prompt_for(model, *sizes), 1)()
        inputs = prompt_for(model, *sizes, job.batch)
        before = resident(job.device)
        Decoding(model, inputs, job.new_tokens)()
        peak = peak_since(job.device)
    return {"weights": bytes_of(model), "activations": max(peak - before, 0)}


def base_model(name: str, device: str | torch.device, dtype: str) -> PreTrainedModel:
    """A model by name on a device; random weights are made there, in their number format."""
    number, before = getattr(torch, dtype), torch.get_default_dtype()
    if not name.startswith(PREFIX):
        return model_from(name).to(device=device, dtype=number)
    torch.set_default_dtype(number)
    try:
        with torch.device(device):
            return model_from(name)
    finally:
        torch.set_default_dtype(before)


def main() -> None:
    """Read a job, write what is measured."""
    job = PromptJob(**json.load(sys.stdin))
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    sys.stdout.write(json.dumps(measure(job, base_model(job.model, job.device, job.dtype))) + "\n")


if __name__ == "__main__":
    main()
