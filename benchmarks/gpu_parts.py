"""The parts of `gpu.py`: each yields what it has measured bit by bit, so that what is there can be kept."""

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

import pumer
from benchmarks.deadline import time_limit
from benchmarks.launches import observe
from benchmarks.rows import CASES, LIMIT, TRANSFORMERS, UNREDUCED, Case, ideal, row_model, sizes, sliced_rows
from benchmarks.training_step import Case as TrainingCase
from benchmarks.training_step import times
from pumer import kernels
from pumer.profiling.inputs import inputs_for
from pumer.profiling.named_models import model_from
from pumer.profiling.peak_memory import peak_of
from pumer.profiling.timing import compare, reason, release_memory, timed

Mode = Literal["eager", "cudagraph", "inductor"]
MODES: tuple[Mode, ...] = ("eager", "cudagraph")


@dataclass(frozen=True)
class Settings:
    """How everything is measured.

    Attributes:
        device: "cuda" or "cpu".
        tiny: The small models in small batches, to try the program.
        seconds: Least time per point.
        pairs: Least number of interleaved rounds per point.
        compile_seconds: For the compilation of one row.
    """

    device: str = "cuda"
    tiny: bool = False
    seconds: float = 1.5
    pairs: int = 7
    compile_seconds: float = 50.0

    def case(self, backbone: str) -> Case:
        """The model of a backbone."""
        full = {"vilt": "vilt-b32", "meter": "meter-b16"}
        return CASES[f"{backbone}-small" if self.tiny else full[backbone]]

    def batch(self, size: int) -> int:
        """A batch size, or a small one."""
        return min(size, 2) if self.tiny else size

    def base(self, case: Case, dtype: str) -> PreTrainedModel:
        """A model whose weights the rows share, made on the device to save time."""
        torch.manual_seed(0)
        with torch.device(self.device):
            model = model_from(case.model)
        return model.to(device=self.device, dtype=getattr(torch, dtype))


def inference(backbone: str, settings: Settings) -> Iterator[dict[str, Any]]:
    """Points by number format, batch size and mode."""
    case, ideals = settings.case(backbone), None
    for dtype, batch_sizes in case.gpu_batch_sizes.items():
        base = settings.base(case, dtype)
        models, failed = _models(case, base)
        ideals = ideals or ideal(case, base, models)
        for batch in batch_sizes:
            for mode in MODES:
                point = _point(case, base, models, dict(failed), batch, mode, settings)
                yield {"dtype": dtype, "mode": mode, **point, "ideal": ideals}
                release_memory()
        del base, models
        release_memory()


def inductor(settings: Settings) -> Iterator[dict[str, Any]]:
    """One point in compiled graphs: ViLT unreduced, its first schedule and the limit of that."""
    case, dtype = settings.case("vilt"), "bfloat16"
    base, first = settings.base(case, dtype), next(iter(case.schedules))
    models, failed = _models(case, base)
    chosen = {name: model for name, model in models.items() if name in (UNREDUCED, first, LIMIT + first)}
    point = _point(case, base, chosen, failed, settings.batch(64), "inductor", settings)
    yield {"dtype": dtype, "mode": "inductor", **point, "ideal": ideal(case, base, chosen)}


def training(settings: Settings) -> Iterator[dict[str, Any]]:
    """A step of ViLT in bfloat16 autocast, without and with a teacher."""
    case = settings.case("vilt")
    first = next(iter(case.schedules))
    rows = {name: case.rows[name] for name in (TRANSFORMERS, first, LIMIT + first)}
    failed: dict[str, str] = {}
    groups = times(
        TrainingCase(case.model, rows),
        settings.batch(64),
        settings.pairs,
        settings.base(case, "float32"),
        torch.bfloat16,
        settings.seconds,
        failed,
    )
    yield {"dtype": "bfloat16 autocast", "batch": settings.batch(64), "groups": groups, "failed": failed}


def memory(settings: Settings) -> Iterator[dict[str, Any]]:
    """Peak memory of inference beyond weights and inputs, by model and number format, with and without slices."""
    batch = settings.batch(64)
    for backbone in ("vilt", "meter"):
        case = settings.case(backbone)
        for dtype in ("bfloat16", "float32"):
            base = settings.base(case, dtype)
            pixels, words = sizes(case, base)
            rows: dict[str, dict[str, float]] = {}
            failed: dict[str, str] = {}
            for row in sliced_rows(case):
                try:
                    model = row_model(base, row.reduction, row.slice_size)
                    rows[row.name] = _memory(model, lambda n: inputs_for(base, pixels, words, n), batch)  # noqa: B023
                except Exception as error:
                    failed[row.name] = reason(error)
                release_memory()
            names = [row.name for row in sliced_rows(case)]
            about = {"model": backbone, "dtype": dtype, "batch": batch, "names": names}
            yield {**about, "rows": rows, "failed": failed}


def _memory(model: Any, make: Callable[[int], dict[str, torch.Tensor]], batch: int) -> dict[str, float]:
    with torch.inference_mode():
        activations = peak_of(model, make, batch)
        inputs = make(batch)
        seconds = statistics.median(timed(model, inputs) for _ in range(5))
    return {"activations": activations, "seconds": seconds}


def reduction(settings: Settings) -> Iterator[dict[str, Any]]:
    """Launches, syncs and kernel time of a reduction, fused and not, beside the unreduced model and the limit."""
    for backbone, batch_sizes in (("vilt", (1, 64, 256)), ("meter", (1, 32, 128))):
        case, dtype = settings.case(backbone), "bfloat16"
        base, first = settings.base(case, dtype), next(iter(case.schedules))
        pixels, words = sizes(case, base)
        for batch in dict.fromkeys(map(settings.batch, batch_sizes)):
            inputs = inputs_for(base, pixels, words, batch)
            found: dict[str, Any] = {}
            failed: dict[str, str] = {}
            for name, row, fused in (
                (UNREDUCED, UNREDUCED, True),
                ("fused", first, True),
                ("plain", first, False),
                ("limit", LIMIT + first, True),
            ):
                kernels.enable(fused)
                try:
                    found[name] = observe(row_model(base, case.rows[row]), inputs)
                except Exception as error:
                    failed[name] = reason(error)
                finally:
                    kernels.enable(True)
            yield {
                "model": backbone,
                "schedule": first,
                "dtype": dtype,
                "batch": batch,
                "rows": found,
                "failed": failed,
            }
            release_memory()


def _models(case: Case, base: PreTrainedModel) -> tuple[dict[str, Any], dict[str, str]]:
    """The rows' models, and why some cannot be made."""
    models: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for name, reduction in case.rows.items():
        try:
            models[name] = row_model(base, reduction)
        except Exception as error:
            failed[name] = reason(error)
    return models, failed


def _point(
    case: Case,
    base: PreTrainedModel,
    models: Mapping[str, Any],
    failed: dict[str, str],
    batch: int,
    mode: Mode,
    settings: Settings,
) -> dict[str, Any]:
    """Interleaved rounds of all rows that work in a mode."""
    inputs = inputs_for(base, *sizes(case, base), batch)
    ready = dict(models) if mode == "eager" else _compiled(models, inputs, failed, mode, settings)
    if not ready:
        return {"batch": batch, "pairs": 0, "models": {}, "failed": failed}
    compared = compare(
        ready, lambda _: inputs, [batch], pairs=settings.pairs, seconds=settings.seconds, failures=failed
    )
    point: dict[str, Any] = compared["points"][0]
    if UNREDUCED not in ready:  # another row took its place
        for measured in point["models"].values():
            measured.pop("speedup", None)
    return {**point, "failed": failed}


def _compiled(
    models: Mapping[str, Any],
    inputs: dict[str, torch.Tensor],
    failed: dict[str, str],
    mode: Mode,
    settings: Settings,
) -> dict[str, Any]:
    """The rows that a mode can take, compiled for these inputs; transformers' own forward is not one of them."""
    ready = {}
    for name, model in models.items():
        if name == TRANSFORMERS:
            continue
        late = TimeoutError(f"not compiled within {settings.compile_seconds:.0f} s")
        try:
            with time_limit(settings.compile_seconds, late), torch.inference_mode():
                ready[name] = pumer.compile(model, backend=mode)
                ready[name](**inputs)
        except Exception as error:
            ready.pop(name, None)
            failed[name] = reason(late if _led_to(late, error) else error)
    return ready


def _led_to(cause: BaseException, error: BaseException | None) -> bool:
    """Whether an error was raised because of another one, or while that was handled."""
    while error is not None and error is not cause:
        error = error.__cause__ or error.__context__
    return error is cause
