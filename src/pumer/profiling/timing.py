"""Time: models against each other in interleaved runs, the batch of highest throughput, the parts of a forward."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pumer.backbones import roots
from pumer.backbones.state import switched
from pumer.patching import reductions
from pumer.reducers.base import Place, Reducer
from pumer.reducers.cues import Cues
from pumer.tokens import Decision, Tokens
from pumer.utils.errors import InputError, out_of_memory
from pumer.utils.files import first_line

Model = nn.Module | Callable[..., Any]
MakeInputs = Callable[[int], dict[str, Tensor]]
Mark = Callable[[str], None]

SHORTEST = 0.02  # seconds; a shorter forward is timed several times in a row
GAIN = 0.01  # of throughput that a doubling of the batch must bring, as a share
EMBEDDING, REDUCE, REST = "embedding", "reduce", "rest"


def compare(
    models: Mapping[str, Model],
    make_inputs: MakeInputs | Mapping[str, MakeInputs],
    batch_sizes: Sequence[int],
    pairs: int = 20,
    seconds: float = 0.0,
    warm_up: int = 2,
    tick: Callable[[], None] = lambda: None,
    failures: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Time models, by name, against the first of them, in one process and in inference mode.

    In every round each model runs once, in an order that rotates from round to round, so that a slow moment of the
    machine hits all of them. The speed-up is the median of the ratios within rounds.

    Args:
        models: The first is the baseline.
        make_inputs: From a batch size to the keyword arguments of a forward; by name, where models take other inputs.
        batch_sizes: Examples per forward; one point each.
        pairs: Least number of rounds of a point.
        seconds: Least time of a point.
        warm_up: Forwards of each model before the first round.
        tick: Called after every round.
        failures: Filled with the reason, by name, why a model failed; the others go on. None: its error is raised.

    Returns:
        ``baseline``, and ``points``: per batch size ``batch``, ``pairs`` and, by model, ``seconds`` of one forward and
        ``speedup`` (each median, lower and upper quartile; no speed-up where the baseline failed) and
        ``images_per_second``.
    """
    make = make_inputs if isinstance(make_inputs, Mapping) else dict.fromkeys(models, make_inputs)
    baseline, points = next(iter(models)), []
    for batch in batch_sizes:
        made = {maker: maker(batch) for maker in set(make.values())}
        calls = {name: partial(timed, model, made[make[name]]) for name, model in models.items()}
        taken, rounds = _rounds(calls, pairs, seconds, warm_up, tick, failures)
        points.append({"batch": batch, "pairs": rounds, "models": _measurements(taken, baseline, batch)})
    return {"baseline": baseline, "points": points}


def _rounds(
    calls: Mapping[str, Callable[[int], float]],
    pairs: int,
    seconds: float,
    warm_up: int,
    tick: Callable[[], None],
    failures: dict[str, str] | None,
) -> tuple[dict[str, list[float]], int]:
    """Seconds of each model in every round, and the number of rounds; a model that failed is left out."""
    taken: dict[str, list[float]] = {name: [] for name in calls}

    def run(name: str, repeats: int) -> float:
        try:
            return calls[name](repeats)
        except Exception as error:
            if failures is None:
                raise
            failures[name] = reason(error)
            del taken[name]
        release_memory()
        return 0.0

    rounds, longest = 0, 0.0
    with torch.inference_mode(), _no_garbage_collection():
        for _ in range(warm_up):
            longest = max((run(name, 1) for name in list(taken)), default=0.0)
        repeats = max(1, math.ceil(SHORTEST / longest)) if longest else 1
        start = time.perf_counter()
        while taken and (rounds < pairs or time.perf_counter() - start < seconds):
            names = list(taken)
            turn = rounds % len(names)
            for name in names[turn:] + names[:turn]:
                took = run(name, repeats)
                if name in taken:
                    taken[name].append(took)
            rounds += 1
            tick()
    return taken, rounds


def _measurements(taken: Mapping[str, list[float]], baseline: str, batch: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, seconds in taken.items():
        found[name] = {"seconds": spread(seconds), "images_per_second": batch / statistics.median(seconds)}
        if baseline in taken:
            ratios = [before / after for before, after in zip(taken[baseline], seconds, strict=True)]
            found[name]["speedup"] = spread(ratios)
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles: ``median``, ``low``, ``high``."""
    if len(values) == 1:
        return dict.fromkeys(("median", "low", "high"), values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def reason(error: Exception) -> str:
    """Why something failed, in a few words."""
    if isinstance(error, RuntimeError) and out_of_memory(error):
        return "out of memory"
    return f"{type(error).__name__}: {first_line(error)}"[:160]


def release_memory() -> None:
    """Free what a GPU's allocator holds and nothing uses."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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
    """Wait until an accelerator has finished its work."""
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
    model: nn.Module, make_inputs: MakeInputs, start: int = 8, most: int = 4096, seconds: float = 1.0
) -> dict[str, Any]:
    """Search for the batch of highest throughput, doubling from `start` until it no longer pays or no longer fits.

    Returns:
        ``batch`` and ``images_per_second`` of the best, ``tried`` (every batch size with its throughput), and
        ``stopped``: "no gain", "out of memory" or "largest batch".
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
        before = best.get("images_per_second", 0.0)
        if rate > before:
            best = tried[-1]
        if rate <= before * (1 + GAIN):
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


def time_split(model: nn.Module, inputs: dict[str, Tensor], runs: int = 10) -> dict[str, float]:
    """Mean seconds of one forward of a patched model, over some runs, by where the time goes.

    They are ``embedding`` (text and patches; METER's two encoders), ``reduce`` (saliency, decisions, applying them) and
    ``rest`` (cross-modal layers, head). A GPU is synchronised between the parts, which makes the sum a little larger
    than an undisturbed forward.
    """
    with torch.inference_mode():
        timed(model, inputs)
        watch = _Stopwatch(next(model.parameters()).device)
        with watched(model, watch.start, watch.stop):
            total = sum(timed(model, inputs) for _ in range(runs))
    parts = {part: seconds / runs for part, seconds in watch.seconds.items()}
    return {**parts, REST: total / runs - sum(parts.values())}


class _Stopwatch:
    """Adds up the seconds of parts."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = {EMBEDDING: 0.0, REDUCE: 0.0}
        self.started = {EMBEDDING: 0.0, REDUCE: 0.0}

    def start(self, part: str) -> None:
        self.started[part] = self._now(part)

    def stop(self, part: str) -> None:
        self.seconds[part] += self._now(part) - self.started[part]

    def _now(self, part: str) -> float:
        synchronise(self.device)
        inside = self.seconds[REDUCE] if part == EMBEDDING else 0.0  # a vision encoder may contain reductions
        return time.perf_counter() - inside


@contextmanager
def watched(model: nn.Module, start: Mark, stop: Mark) -> Iterator[None]:
    """Call `start` and `stop` when an `EMBEDDING` or `REDUCE` of a patched model starts and stops, in a ``with`` block.

    A `REDUCE` may lie inside an `EMBEDDING`.
    """
    before = [(state, state.reducers) for state in reductions(model)]
    handles = []
    for root, family in roots(model):
        for module in family.embedders(root):
            handles.append(module.register_forward_pre_hook(lambda *_: start(EMBEDDING)))
            handles.append(module.register_forward_hook(lambda *_: stop(EMBEDDING)))
    for state, reducers in before:
        state.reducers = {place: _WatchedReducer(reducer, start) for place, reducer in reducers.items()}
    try:
        with switched([state for state, _ in before], "recording", _Applied(stop)):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for state, reducers in before:
            state.reducers = reducers


class _WatchedReducer:
    """Reports that a reduction starts."""

    def __init__(self, reducer: Reducer, start: Mark) -> None:
        self.reducer, self.start, self.needs = reducer, start, reducer.needs

    def decide(self, cues: Cues) -> Decision:
        self.start(REDUCE)
        return self.reducer.decide(cues)


@dataclass(frozen=True)
class _Applied:
    """Reports that a reduction has been applied; a `pumer.backbones.base.Recorder`."""

    stop: Mark

    def begin(self, tokens: Tokens, cell: Tensor, history: Sequence[tuple[Place, Decision]]) -> None:
        pass

    def step(self, place: Place, decision: Decision, tokens: Tokens) -> None:
        self.stop(REDUCE)
