"""What a patched model carries along: its reducers, and what is switched off or recorded in this thread or task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from pumer.backbones.grids import Grids
from pumer.reducers.base import Place, Reducer, ReductionConfig
from pumer.reducers.cues import Cues
from pumer.reducers.shortening.base import ShorteningConfig
from pumer.tokens import Decision, Tokens


class Recorder(Protocol):
    """Records a forward; see `pumer.visualization.tracing`."""

    def begin(self, tokens: Tokens, cell: Tensor | Grids, history: Sequence[tuple[Place, Decision]]) -> None:
        """A stream enters the first cross-modal layer; two streams count as one, the text first.

        Args:
            tokens: The stream; its source map starts at the model's inputs.
            cell: ``(B, image inputs, 2)``, row and column of each patch, -1 for [CLS] and free slots; of a decoder's
                prompts their grids.
            history: The decisions of a vision encoder about these images, whenever it ran.
        """

    def step(self, place: Place, decision: Decision, tokens: Tokens) -> None:
        """A layer has made a decision, which led to these tokens; in a vision encoder, to these image tokens."""


@dataclass
class Reduction:
    """State of one patched model.

    Attributes:
        config: The method and its settings.
        widths: ``D`` of each stack of layers.
        reducers: Reducer of each reducing layer.
        slice_size: Examples that run together through the layers before the last reduction, in inference; None: all.
        expands: Whether the words are put back to their places in the output; not for heads that read the pooled
            vector alone.
        disabling: Number of open `pumer.disabled` blocks in all threads and tasks; a compiled graph has guards on it.
        recording: The same of `pumer.trace`.
    """

    config: ReductionConfig
    widths: Mapping[str, int] = field(default_factory=dict)
    reducers: dict[Place, Reducer] = field(init=False)
    slice_size: int | None = None
    expands: bool = True
    disabling: int = field(default=0, compare=False)
    recording: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        """Build the reducers."""
        self.reducers = self.config.reducers() | self.config.learned(self.widths)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are inside no block."""
        return {**self.__dict__, "disabling": 0, "recording": 0}

    @property
    def enabled(self) -> bool:
        """False inside `pumer.disabled`."""
        # A graph has guards on attributes and cannot read context variables; a checkpoint is recomputed in a thread of
        # autograd's, which is in no block.
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() != -1:
            return self.disabling == 0
        return _switch_of(self, "disabling") is None

    @property
    def recorder(self) -> Recorder | None:
        """The recorder of this thread or task, inside `pumer.trace`."""
        if torch.compiler.is_compiling():
            if self.recording:
                raise RuntimeError("a trace cannot be taken inside a compiled graph; trace the model before compiling")
            return None
        recorder: Recorder | None = _switch_of(self, "recording")
        return recorder

    @property
    def shortening(self) -> ShorteningConfig | None:
        """The method that shortens prompts before the decoder; None while disabled."""
        found = self.config if isinstance(self.config, ShorteningConfig) else self.config.before
        return found if self.enabled else None

    def reduces(self, stack: str) -> bool:
        """Whether some layer of a stack has a reducer at work."""  # not bool(dict): torch 2.11 cannot compile that
        return len(self.active_reducers(stack)) > 0

    def active_reducers(self, stack: str) -> dict[int, Reducer]:
        """Reducers of one stack by layer; none while disabled."""
        if not self.enabled:
            return {}
        return {layer: reducer for (place, layer), reducer in self.reducers.items() if place == stack}

    def slices(self, batch: int) -> list[slice]:
        """The rows of a batch that run together while there are many tokens.

        All of them where gradients are enabled, inside `pumer.trace` and in an export.
        """
        size = self.slice_size
        whole = size is None or torch.is_grad_enabled() or self.recorder is not None or torch.compiler.is_exporting()
        if size is None or whole or batch <= size:
            return [slice(0, batch)]
        return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]

    def first_layers(
        self,
        batch: int,
        depth: int,
        enter: Callable[[slice | None], Tokens],
        run: Callable[[Tokens, int], Tokens],
        whole: bool = False,
    ) -> tuple[Tokens, int]:
        """Run the layers before the last reduction, where most of the memory goes, slice by slice.

        Args:
            batch: Examples.
            depth: Cross-modal layers.
            enter: From rows of the batch (None: all of them) to the tokens that enter the first layer.
            run: From those, and the layer to stop before, to the tokens that enter that one.
            whole: Whether not to slice.

        Returns:
            The tokens of the batch, and the layer that they enter: the first one where the batch is not sliced.
        """
        slices = self.slices(batch)
        if whole or len(slices) == 1:
            return enter(None), 0
        stop = 1 + max(list(self.active_reducers("fusion")) or [depth - 1])  # a compiled graph has no default of max()
        return Tokens.of_slices([run(enter(rows), stop) for rows in slices]), stop

    def begin(self, tokens: Tokens, cell: Tensor | Grids, history: Sequence[tuple[Place, Decision]] = ()) -> None:
        """Report to the recorder, if there is one, that a forward begins."""
        if (recorder := self.recorder) is not None:
            recorder.begin(tokens, cell, history)

    def record(self, place: Place, decision: Decision, tokens: Tokens) -> None:
        """Report a decision to the recorder, if there is one."""
        if (recorder := self.recorder) is not None:
            recorder.step(place, decision, tokens)

    def decide(self, reducer: Reducer, cues: Cues) -> Decision:
        """A reducer's decision; no gradient flows into one that has no weights."""
        if isinstance(reducer, nn.Module):
            return reducer.decide(cues)
        with torch.no_grad():
            return reducer.decide(cues)

    def modules(self) -> nn.ModuleDict | None:
        """The reducers that are modules, under the names they have in a state dict; None if there are none."""
        found = {f"{stack}_{n}": r for (stack, n), r in self.reducers.items() if isinstance(r, nn.Module)}
        return nn.ModuleDict(found) if found else None


@dataclass(frozen=True, eq=False)
class _Block:
    """An open ``with`` block of `switched`."""

    states: tuple[Reduction, ...]
    name: str
    value: Any


_OPEN: ContextVar[tuple[_Block, ...]] = ContextVar("open_blocks", default=())
"""The blocks that this thread or task is in."""
_COUNTING = Lock()


@contextmanager
def switched(states: Sequence[Reduction], name: Literal["disabling", "recording"], value: Any) -> Iterator[None]:
    """Switch every state for the length of a ``with`` block, in this thread or task alone.

    Args:
        states: Of one or several models.
        name: "disabling", or "recording".
        value: True, or a `Recorder`.
    """
    block = _Block(tuple(states), name, value)
    _OPEN.set((*_OPEN.get(), block))
    _count(block, 1)
    try:
        yield
    finally:
        _count(block, -1)
        _OPEN.set(tuple(other for other in _OPEN.get() if other is not block))


def _switch_of(state: Reduction, name: str) -> Any:
    """The value of the innermost block that switches a state; None outside all of them."""
    values = [b.value for b in _OPEN.get() if b.name == name and any(own is state for own in b.states)]
    return values[-1] if values else None


def _count(block: _Block, step: int) -> None:
    with _COUNTING:
        for state in block.states:
            setattr(state, block.name, getattr(state, block.name) + step)
