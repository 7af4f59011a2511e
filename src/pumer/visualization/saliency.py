"""The scores by which each layer chooses the image tokens that it keeps."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pumer.functional import asked_for
from pumer.patching import reductions
from pumer.reducers.base import Place, Reducer
from pumer.reducers.cues import Cues
from pumer.reducers.dynamicvit import TokenPredictor
from pumer.reducers.layered import ScoringConfig
from pumer.reducers.pumer import PuMerReducer
from pumer.reducers.pumer_released import ReleasedPuMerConfig
from pumer.tokens import Decision

Saliency = dict[Place, Tensor]
"""By place ``(B, N0)``, the score of the token that held each input token; NaN for what was gone and for text."""


@contextmanager
def saliency(model: nn.Module) -> Iterator[list[Saliency]]:
    """Record the scores of image tokens in the forwards of a ``with`` block, beside `pumer.trace`.

    Methods that score no image token, such as those that only merge, leave an empty entry; vision encoders none.

    Args:
        model: A patched model that is not compiled. No other thread may run it in the block.

    Yields:
        An entry per forward that reaches a layer that reduces; filled while it runs.
    """
    found = _Found()
    before = [(state, state.reducers) for state in reductions(model)]
    for state, reducers in before:
        state.reducers = {
            place: reducer if place[0] == "vision" else _Scored(place, reducer, found)
            for place, reducer in reducers.items()
        }
    try:
        yield found.forwards
    finally:
        for state, reducers in before:
            state.reducers = reducers


@dataclass
class _Found:
    """The scores of each forward, and the last place that decided; the places of a forward are in rising order."""

    forwards: list[Saliency] = field(default_factory=list)
    last: Place | None = None

    def enter(self, place: Place) -> Saliency:
        """The scores of the forward that a place decides in."""
        if self.last is None or place <= self.last:
            self.forwards.append({})
        self.last = place
        return self.forwards[-1]


@dataclass
class _Scored:
    """A reducer that leaves its scores."""

    place: Place
    reducer: Reducer
    found: _Found
    needs: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.needs = self.reducer.needs

    def decide(self, cues: Cues) -> Decision:
        score, source = _score(self.reducer, cues), cues.tokens.source
        entry = self.found.enter(self.place)
        if score is not None:
            scores = cues.spread(score.float().masked_fill(~cues.image_mask, torch.nan), torch.nan)
            held = scores.gather(1, source.clamp(min=0)).masked_fill(source < 0, torch.nan)
            entry[self.place] = held.detach().cpu()
        return self.reducer.decide(cues)


def _score(reducer: Reducer, cues: Cues) -> Tensor | None:
    """``(B, V)``; None of a method that does not score image tokens."""
    if isinstance(reducer, ScoringConfig):
        return reducer.score(cues)
    if isinstance(reducer, TokenPredictor):
        return reducer.forward(cues.image_states, cues.image_mask)
    pruning = isinstance(reducer, PuMerReducer) and reducer.step.prune_ratio > 0
    if pruning or isinstance(reducer, ReleasedPuMerConfig):
        rows, asking = cues.asking_rows()
        return asked_for(rows, asking.to(rows.dtype))
    return None
