"""Timing models against each other: interleaved runs, paired ratios, the batch of highest throughput."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pumer.utils.errors import InputError, out_of_memory

Model = nn.Module | Callable[..., Any]
MakeInputs = Callable[[int], dict[str, Tensor]]
Tick = Callable[[], None]

SHORTEST = 0.02  # seconds; a shorter forward is timed several times in a row


def compare(
    models: Mapping[str, Model],
    make_inputs: MakeInputs | Mapping[str, MakeInputs],
    batch_sizes: Sequence[int],
    pairs: int = 20,
    seconds: float = 0.0,
    warm_up: int = 2,
    tick: Tick = lambda: None,
    failures: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Time models against the first of them, in one process and in inference mode.

    In every round each model runs once, in an order that rotates from round to round, so that a slow moment of the
    machine hits all of them. The speed-up is the median of the ratios within rounds.

    Args:
        models: By name; the first is what the others are compared with.
        make_inputs: From a batch size to the keyword arguments of a forward; by name, where models take other inputs.
        batch_sizes: Examples per forward; one point each.
        pairs: Least number of rounds.
        seconds: Least time per point; rounds go on until it is over.
        warm_up: Forwards of each model before the first round.
        tick: Called after every round.
        failures: Where to note, by name, why a model failed; the others go on without it. None: its error ends all.

    Returns:
        ``baseline``, and ``points``: per batch size ``batch``, ``pairs`` and, by model, ``seconds`` of one forward and
        ``speedup`` (each median, lower and upper quartile; no speed-up where the baseline failed) and
        ``images_per_second``.
    """
    make = make_inputs if isinstance(make_inputs, Mapping) else dict.fromkeys(models, make_inputs)
    points = []
    for batch in batch_sizes:
        made = {maker: maker(batch) for maker in set(make.values())}
        inputs = {name: made[make[name]] for name in models}
        points.append(_point(models, inputs, batch, pairs, seconds, warm_up, tick, failures))
    return {"baseline": next(iter(models)), "points": points}


def _point(
    models: Mapping[str, Model],
    inputs: Mapping[str, dict[str, Tensor]],
    batch: int,
    pairs: int,
    seconds: float,
    warm_up: int,
    tick: Tick,
    failures: dict[str, str] | None,
) -> dict[str, Any]:
    """One batch size."""
    taken: dict[str, list[float]] = {name: [] for name in models}

    def run(name: str, repeats: int = 1) -> float:
        try:
            return timed(models[name], inputs[name], repeats)
        except Exception as error:
            if failures is None:
                raise
            failures[name] = reason(error)
            del taken[name]
        release_memory()
        return 0.0

    with torch.inference_mode(), _no_garbage_collection():
        first = 0.0
        for _ in range(warm_up):
            first = max((run(name) for name in list(taken)), default=0.0)
        repeats = max(1, math.ceil(SHORTEST / first)) if first else 1
        start, round_ = time.perf_counter(), 0
        while taken and (round_ < pairs or time.perf_counter() - start < seconds):
            names = list(taken)
            turn = round_ % len(names)
            for name in names[turn:] + names[:turn]:
                took = run(name, repeats)
                if name in taken:
                    taken[name].append(took)
            round_ += 1
            tick()
    return {"batch": batch, "pairs": round_, "models": _measurements(taken, next(iter(models)), batch)}


def _measurements(taken: Mapping[str, list[float]], baseline: str, batch: int) -> dict[str, Any]:
    """From the seconds of every round, by model."""
    found: dict[str, Any] = {}
    for name, seconds in taken.items():
        found[name] = {"seconds": spread(seconds), "images_per_second": batch / statistics.median(seconds)}
        if baseline in taken:
            ratios = [before / after for before, after in zip(taken[baseline], seconds, strict=True)]
            found[name]["speedup"] = spread(ratios)
    return found


def reason(error: BaseException) -> str:
    """Why something failed, in a few words."""
    if isinstance(error, RuntimeError) and out_of_memory(error):
        return "out of memory"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:160]


def release_memory() -> None:
    """Give back what the allocator of a GPU holds and nobody uses."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) == 1:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def timed(model: Model, inputs: dict[str, Tensor], repeats: int = 1) -> float:
    """Seconds of one forward, device-synchronised; the mean of several in a row."""
    device = next(iter(inputs.values())).device
    synchronise(device)
    start = time.perf_counter()
    for _ in range(repeats):
        model(**inputs)
    synchronise(device)
    return (time.perf_counter() - start) / repeats


def synchronise(device: torch.device) -> None:
    """Wait for what an accelerator still has to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def fastest_batch(
    model: nn.Module,
    make_inputs: MakeInputs,
    start: int = 8,
    most: int = 4096,
    seconds: float = 1.0,
    gain: float = 0.01,
) -> dict[str, Any]:
    """Search upward for the batch of highest throughput, doubling until it no longer pays or no longer fits.

    Args:
        model: What is measured, in inference mode.
        make_inputs: As for `compare`.
        start: First batch size, if it is not larger than the largest.
        most: Largest batch size tried.
        seconds: Time per batch size; at least 3 forwards.
        gain: By how much more throughput a doubling must pay off.

    Returns:
        ``batch`` and ``images_per_second`` of the best, ``tried`` (every batch size with its throughput), and
        ``stopped``: "no gain", "out of memory" or "largest batch".

    Raises:
        InputError: If not even the first batch fits into memory.
    """
    tried: list[dict[str, float]] = []
    best: dict[str, float] = {}
    batch, stopped = min(start, most), "largest batch"
    while batch <= most:
        try:
            rate = _throughput(model, make_inputs(batch), batch, seconds)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if not best:
                raise InputError(f"a batch of {batch} does not fit into memory; give a smaller one") from error
            torch.cuda.empty_cache()
            stopped = "out of memory"
            break
        tried.append({"batch": batch, "images_per_second": rate})
        gained = not best or rate > best["images_per_second"] * (1 + gain)
        if not best or rate > best["images_per_second"]:
            best = tried[-1]
        if not gained:
            stopped = "no gain"
            break
        batch *= 2
    return {**best, "tried": tried, "stopped": stopped}


def _throughput(model: nn.Module, inputs: dict[str, Tensor], batch: int, seconds: float) -> float:
    with torch.inference_mode():
        timed(model, inputs)
        taken = [timed(model, inputs) for _ in range(3)]
        while sum(taken) < seconds:
            taken.append(timed(model, inputs))
    return batch / statistics.median(taken)
