"""Settings of `pumer benchmark`."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from pumer.settings.common import (
    LARGEST_BATCH,
    BatchSize,
    DType,
    MeasuringJob,
    NewFile,
    Pairs,
    PromptTokens,
    Seconds,
    Threads,
)
from pumer.utils.config import config


@config
class BenchmarkConfig(MeasuringJob):
    """Settings of a benchmark; all models are timed in turn, in one process and in inference mode.

    Attributes:
        reductions: method and settings by name of the row; empty for the reduction the model was saved with. A row may
            have its own `image_size`, to put fewer pixels beside fewer tokens.
        transformers: whether transformers' own forward is measured as well.
        batch_sizes: examples per forward, one point each.
        new_tokens: of a model that generates, tokens after the first one that a round generates.
        pairs: least number of interleaved rounds per point.
        seconds: least time per point.
        search: whether to search upward (doubling) for the batch of highest throughput, of each model apart.
        search_seconds: time per batch size of that search.
        memory_batch: examples in the forward whose peak memory is measured; 0 to leave memory out. Of a model that
            generates, that of a prompt and `new_tokens`.
        dtype: number format of weights and arithmetic.
        device: "auto" takes a GPU where there is one.
        threads: CPU threads; null for torch's own choice.
        compile: whether to time the models as `pumer.compile` makes them, at the very sizes that are asked for:
            transformers' own forward stays as it is, memory and the split of the time are of the models themselves.
        output: JSON file to write, or null.
        progress: whether to show a progress bar.
        force: whether to replace a result file that is there already.
    """

    reductions: dict[str, Any] = field(default_factory=dict)
    transformers: bool = True
    batch_sizes: Annotated[tuple[BatchSize, ...], Field(min_length=1)] = (1, 8)
    new_tokens: PromptTokens = 16
    pairs: Pairs = 20
    seconds: Seconds = 0.0
    search: bool = False
    search_seconds: Seconds = 1.0
    memory_batch: Annotated[int, Field(ge=0, le=LARGEST_BATCH)] = 8
    dtype: DType = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Threads | None = None
    compile: bool = False
    output: NewFile | None = None
    progress: bool = True
    force: bool = False
