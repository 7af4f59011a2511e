"""Where the time of a patched model goes: embedding, reduction, and the rest."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pumer.backbones import BACKBONES
from pumer.backbones.base import switched
from pumer.patching import reductions
from pumer.profiling.timing import synchronise, timed
from pumer.reducers.base import Place
from pumer.reducers.cues import Cues
from pumer.tokens import Decision, Tokens

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
        watch = _Stopwatch(next(model.parameters()).device)
        with watched(model, watch):
            total = sum(timed(model, inputs) for _ in range(runs))
    parts = {EMBEDDING: watch.seconds[EMBEDDING] / runs, REDUCE: watch.seconds[REDUCE] / runs}
    return {**parts, REST: total / runs - sum(parts.values())}


class Watch(Protocol):
    """Is told when a part of a forward starts and when it ends."""

    def start(self, part: str) -> None:
        """A part starts: `EMBEDDING` or `REDUCE`."""

    def stop(self, part: str) -> None:
        """It ends; a `REDUCE` may lie inside an `EMBEDDING`."""


class _Stopwatch:
    """Adds up the time of parts."""

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


class _Recorder:
    """Learns when a reduction has been applied."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def begin(self, tokens: Tokens, cell: Tensor, history: Sequence[tuple[Place, Decision]]) -> None:
        pass

    def step(self, place: Place, decision: Decision, tokens: Tokens) -> None:
        self._watch.stop(REDUCE)


class _TimedReducer:
    """A reducer that starts the clock when it is asked; the recorder stops it."""

    def __init__(self, reducer: Any, watch: Watch) -> None:
        self._reducer, self._watch = reducer, watch
        self.needs = reducer.needs

    def decide(self, cues: Cues) -> Decision:
        self._watch.start(REDUCE)
        decision: Decision = self._reducer.decide(cues)
        return decision


@contextmanager
def watched(model: nn.Module, watch: Watch) -> Iterator[None]:
    """Tell a watch about the parts of a patched model's forwards, for the length of a ``with`` block."""
    before = [(state, state.reducers) for state in reductions(model)]
    roots = [(m, b) for m in model.modules() for b in BACKBONES.values() if isinstance(m, b.classes[b.root])]
    handles = []
    for root, backbone in roots:
        for module in backbone.embedders(root):
            handles.append(module.register_forward_pre_hook(lambda *_: watch.start(EMBEDDING)))
            handles.append(module.register_forward_hook(lambda *_: watch.stop(EMBEDDING)))
    for state, _ in before:
        state.reducers = {place: _TimedReducer(reducer, watch) for place, reducer in state.reducers.items()}
    try:
        with switched([state for state, _ in before], "recording", _Recorder(watch)):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for state, reducers in before:
            state.reducers = reducers
