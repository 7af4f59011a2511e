"""What the benchmarks of this folder compare: the models, and the rows of their tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from pumer import NoReduction, PuMerConfig, ToMeConfig, plan
from pumer.profiling.limit import limit_of, measured_reduction
from pumer.profiling.named_models import default_image_size, default_text_length, variant
from pumer.reducers import config_to_dict

UNREDUCED, TRANSFORMERS = "unreduced", "transformers"
LIMIT = "limit of "
"""Before the name of a reduction: its schedule by plain slices, see `pumer.profiling.limit`."""
SLICE_SIZE = 8


def _paper(backbone: str, task: str, vision: bool = False) -> dict[str, Any]:
    return config_to_dict(PuMerConfig.preset(backbone, task, vision))


VILT_LAYERS = 12
SCHEDULES = {
    "vilt": {"2,5,8": _paper("vilt", "vqav2"), "2,4,6,8": _paper("vilt", "snli_ve")},
    "meter": {
        "0,2,4,6; 0.2/0.2/0.2": _paper("meter", "vqav2"),
        "0,2,4,6; 0.3/0.5/0.2": _paper("meter", "snli_ve"),
        "0,2,4,6; 0.2/0.2/0.2 + vision": _paper("meter", "vqav2", vision=True),
    },
    "meter-pairs": {"2,4,6; 0.3/0.5/0.2": _paper("meter", "nlvr2")},
}
"""The paper's schedules, and ours inside METER's vision encoder."""

TOME = {"ToMe 13": config_to_dict(ToMeConfig(layers=tuple(range(VILT_LAYERS)), merge_count=13))}


@dataclass(frozen=True)
class Case:
    """A model and what it is compared with.

    Attributes:
        model: As for `pumer.profiling.named_models.model_from`.
        schedules: Name of the row to the reduction, as in ``reduction.json``; each has its limit beside it.
        others: Methods without a limit.
        transformers: Whether transformers has the model, so that its own forward is measured as well.
        batch_sizes: On a CPU; METER takes about a second per example.
        gpu_batch_sizes: By number format, what matters most first.
        memory_batch: Examples in the forward whose peak memory is measured on a CPU.
        sliced_batch: The same with and without slices of `SLICE_SIZE` examples; 0: it is not.
    """

    model: str
    schedules: Mapping[str, dict[str, Any]]
    others: Mapping[str, dict[str, Any]]
    transformers: bool
    batch_sizes: tuple[int, ...]
    gpu_batch_sizes: Mapping[str, tuple[int, ...]]
    memory_batch: int
    sliced_batch: int = 0

    @property
    def reductions(self) -> dict[str, dict[str, Any]]:
        """Every row but the unreduced one and transformers' own: a schedule, its limit, the next one."""
        rows: dict[str, dict[str, Any]] = {}
        for name, reduction in self.schedules.items():
            rows |= {name: reduction, LIMIT + name: limit_of(reduction)}
        return rows | dict(self.others)

    @property
    def rows(self) -> dict[str, dict[str, Any] | None]:
        """Every row, the baseline first; None for transformers' own."""
        own: dict[str, dict[str, Any] | None] = {TRANSFORMERS: None} if self.transformers else {}
        return {UNREDUCED: config_to_dict(NoReduction()), **own, **self.reductions}


CASES = {
    "vilt-b32": Case(
        "preset:vilt-b32",
        SCHEDULES["vilt"],
        TOME,
        transformers=True,
        batch_sizes=(1, 8),
        gpu_batch_sizes={"bfloat16": (1, 64, 256, 8), "float32": (64, 1, 256, 8)},
        memory_batch=8,
        sliced_batch=32,
    ),
    "meter-b16": Case(
        "preset:meter-b16",
        SCHEDULES["meter"],
        {},
        transformers=False,
        batch_sizes=(1, 4),
        gpu_batch_sizes={"bfloat16": (1, 32, 128, 8), "float32": (32, 1)},
        memory_batch=4,
        sliced_batch=32,
    ),
    "meter-b16-nlvr2": Case(
        "preset:meter-b16-nlvr2",
        SCHEDULES["meter-pairs"],
        {},
        transformers=False,
        batch_sizes=(1, 2),
        gpu_batch_sizes={},
        memory_batch=2,
    ),
    "vilt-small": Case(
        "small:vilt",
        SCHEDULES["vilt"],
        TOME,
        transformers=True,
        batch_sizes=(1, 8),
        gpu_batch_sizes={"bfloat16": (1, 2), "float32": (2,)},
        memory_batch=8,
        sliced_batch=32,
    ),
    "meter-small": Case(
        "small:meter",
        SCHEDULES["meter"],  # its vision encoder has four layers: the last row fails
        {},
        transformers=False,
        batch_sizes=(1, 4),
        gpu_batch_sizes={"bfloat16": (1,), "float32": (2,)},
        memory_batch=4,
    ),
}


@dataclass(frozen=True)
class Sliced:
    """A row with or without slices."""

    name: str
    reduction: dict[str, Any]
    slice_size: int | None


def sliced_rows(case: Case) -> list[Sliced]:
    """The unreduced model and the first schedule, each as a whole and in slices."""
    rows = {name: reduction for name, reduction in case.rows.items() if name in (UNREDUCED, next(iter(case.schedules)))}
    return [
        Sliced(name if size is None else f"{name}, slices of {size}", reduction, size)
        for name, reduction in rows.items()
        if reduction is not None
        for size in (None, SLICE_SIZE)
    ]


def sizes(case: Case, base: PreTrainedModel) -> tuple[int, int]:
    """Pixels along a side, and words."""
    return default_image_size(case.model, base), default_text_length(case.model, base)


def row_model(base: PreTrainedModel, reduction: Mapping[str, Any] | None, slice_size: int | None = None) -> Any:
    """A row's model; it shares its weights with the others."""
    return variant(base, None if reduction is None else measured_reduction(reduction), slice_size)


def ideal(case: Case, base: PreTrainedModel, models: Mapping[str, Any]) -> dict[str, float]:
    """MACs of the unreduced model over those of each row."""
    pixels, words = sizes(case, base)
    return {name: plan(model, pixels, words).ideal_speedup for name, model in models.items()}
