"""Settings of `pumer benchmark`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pumer.settings.common import known_preset
from pumer.utils.arguments import in_range, new_files
from pumer.utils.errors import InputError
from pumer.utils.limits import check_checkpoint, checkpoint_files


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings of a benchmark; all models are timed in turn, in one process and in inference mode.

    Attributes:
        model: A folder, a hub name, or "preset:vilt-b32" (full size, random weights, no download).
        reductions: Method and settings by name of the row; empty for the reduction the model was saved with. A row may
            have its own `image_size`, to put fewer pixels beside fewer tokens.
        transformers: Whether transformers' own forward is measured as well.
        batch_sizes: Examples per forward, one point each.
        pairs: Least number of interleaved rounds per point.
        seconds: Least time per point.
        search: Whether to search upward (doubling) for the batch of highest throughput, of each model apart.
        search_seconds: Time per batch size of that search.
        memory_batch: Examples in the forward whose peak memory is measured; 0 to leave memory out.
        image_size: Pixels each way, a multiple of the patch size; None for the model's own.
        text_length: Words, special tokens counted; None for as many as the checkpoint was trained with, else 32 (or its
            positions, if fewer).
        dtype: Number format of weights and arithmetic.
        device: "auto" takes a GPU where there is one.
        threads: CPU threads; None for torch's own choice.
        compile: Whether to time the models as `pumer.compile` makes them, at the very sizes that are asked for:
            transformers' own forward stays as it is, memory and the split of the time are of the models themselves.
        output: JSON file to write, or None.
        progress: Whether to show a progress bar.
        force: Whether to replace a result file that is there already.
    """

    model: str = "preset:vilt-b32"
    reductions: dict[str, Any] = field(default_factory=dict)
    transformers: bool = True
    batch_sizes: tuple[int, ...] = (1, 8)
    pairs: int = 20
    seconds: float = 0.0
    search: bool = False
    search_seconds: float = 1.0
    memory_batch: int = 8
    image_size: int | None = None
    text_length: int | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    compile: bool = False
    output: Path | None = None
    progress: bool = True
    force: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.batch_sizes:
            raise InputError("batch_sizes is []; give at least one integer above 0")
        in_range(self)
        known_preset(self.model)

    @property
    def written(self) -> tuple[Path, ...]:
        """What is written."""
        return () if self.output is None else (self.output,)

    def check_places(self) -> None:
        """Refuse files and folders that are not there, or could not be written."""
        check_checkpoint(self.model, self.image_size)
        new_files(self.output, force=self.force, inputs=checkpoint_files(self.model))
