"""Where the time of a patched model goes: embedding, reduction, and the rest."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pumer.backbones import BACKBONES
from pumer.measuring.timing import synchronise, timed
from pumer.patching import reductions
from pumer.reducers.base import Place
from pumer.tokens import Cues, Decision, Tokens

EMBEDDING, REDUCE, REST = "embedding", "reduce", "rest"


def time_split(model: nn.Module, inputs: dict[str, Tensor], runs: int = 10) -> dict[str, float]:
    """Where the time of a patched model goes.

    Args:
        model: Patched; it is the same afterwards.
        inputs: Keyword arguments of a forward.
        runs: Forwards.

    Returns:
        Mean seconds of one forward for ``embedding`` (text and patches; METER's two encoders), ``reduce`` (saliency,
        decisions, applying them) and ``rest`` (cross-modal layers, head). A GPU is synchronised between the parts,
        which makes the sum a little larger than an undisturbed forward.
    """
    with torch.inference_mode():
        timed(model, inputs)
        with _stopwatch(model) as watch:
            total = sum(timed(model, inputs) for _ in range(runs))
    parts = {EMBEDDING: watch.seconds[EMBEDDING] / runs, REDUCE: watch.seconds[REDUCE] / runs}
    return {**parts, REST: total / runs - sum(parts.values())}


class _Stopwatch:
    """Adds up the time of parts; as a recorder, it learns when a reduction has been applied."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = {EMBEDDING: 0.0, REDUCE: 0.0}
        self.started = {EMBEDDING: 0.0, REDUCE: 0.0}

    def start(self, part: str) -> None:
        synchronise(self.device)
        self.started[part] = time.perf_counter()
        if part == EMBEDDING:  # which may contain reductions, in a vision encoder
            self.started[part] -= self.seconds[REDUCE]

    def stop(self, part: str) -> None:
        synchronise(self.device)
        self.seconds[part] += time.perf_counter() - self.started[part]
        if part == EMBEDDING:
            self.seconds[part] -= self.seconds[REDUCE]

    def begin(self, tokens: Tokens, cell: Tensor, history: Sequence[tuple[Place, Decision]]) -> None:
        pass

    def step(self, place: Place, decision: Decision, tokens: Tokens) -> None:
        self.stop(REDUCE)


class _TimedReducer:
    """A reducer that starts the clock when it is asked; the recorder stops it."""

    def __init__(self, reducer: Any, watch: _Stopwatch) -> None:
        self._reducer, self._watch = reducer, watch
        self.needs = reducer.needs

    def decide(self, cues: Cues) -> Decision:
        self._watch.start(REDUCE)
        decision: Decision = self._reducer.decide(cues)
        return decision


@contextmanager
def _stopwatch(model: nn.Module) -> Iterator[_Stopwatch]:
    """Put clocks into a patched model."""
    watch = _Stopwatch(next(model.parameters()).device)
    before = [(state, dict(vars(state))) for state in reductions(model)]
    roots = [(m, b) for m in model.modules() for b in BACKBONES.values() if type(m) is b.classes[b.root]]
    handles = []
    for root, backbone in roots:
        for module in backbone.embedders(root):
            handles.append(module.register_forward_pre_hook(lambda *_: watch.start(EMBEDDING)))
            handles.append(module.register_forward_hook(lambda *_: watch.stop(EMBEDDING)))
    for state, _ in before:
        state.reducers = {place: _TimedReducer(reducer, watch) for place, reducer in state.reducers.items()}
        state.recorder = watch
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()
        for state, values in before:
            vars(state).update(values)
