"""What a model family provides, and what a patched model carries along."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Lock
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from pumer.backbones import subclasses
from pumer.backbones.streams import autocast_off
from pumer.reducers.base import CLS_ROW, KEYS, TEXT_ROWS, Place, Reducer, ReductionConfig
from pumer.reducers.cues import Cues
from pumer.tokens import Decision, Tokens


class Recorder(Protocol):
    """Takes notes during a forward; see `pumer.visualization.tracing`."""

    def begin(self, tokens: Tokens, cell: Tensor, history: Sequence[tuple[Place, Decision]]) -> None:
        """A stream enters the first cross-modal layer; a model with two streams shows them as one, the text first.

        Args:
            tokens: The stream; its source map starts at the model's inputs.
            cell: ``(B, image inputs, 2)``, row and column of each patch, -1 for [CLS] and free slots.
            history: What a vision encoder decided about these images, whenever it ran.
        """

    def step(self, place: Place, decision: Decision, tokens: Tokens) -> None:
        """A layer has just made a decision, which led to these tokens; in a vision encoder, to these image tokens."""


@dataclass
class Reduction:
    """State of one patched model: the config and its reducers; whether they are at work depends on the context.

    Attributes:
        config: The method and its settings.
        widths: ``D`` of each stack of layers.
        reducers: Reducer of each reducing layer.
        slice_size: Examples that run together through the layers before the last reduction, in inference; None: all.
        expands: Whether the words are put back to their places in the output, which a head that reads the pooled vector
            alone does not look at.
        disabling: Blocks of `pumer.disabled` that some thread or task is in; what a compiled graph looks at.
        recording: Blocks of `pumer.trace` that some thread or task is in; the same.
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
        # A graph has guards on attributes, and cannot read context variables; a checkpoint is recomputed in a thread
        # of autograd's, which is in no block.
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() != -1:
            return self.disabling == 0
        return self._switched("disabling") is None

    @property
    def recorder(self) -> Recorder | None:
        """What takes notes, inside `pumer.trace`."""
        if torch.compiler.is_compiling():
            if self.recording:
                raise RuntimeError("a trace cannot be taken inside a compiled graph; trace the model before compiling")
            return None
        recorder: Recorder | None = self._switched("recording")
        return recorder

    def _switched(self, name: str) -> Any:
        blocks = _SWITCHED.get().get((id(self), name))
        return blocks[-1].value if blocks else None

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

        Args:
            batch: Examples.
        """
        size = self.slice_size
        whole = size is None or torch.is_grad_enabled() or self.recorder is not None or torch.compiler.is_exporting()
        if size is None or whole or batch <= size:
            return [slice(0, batch)]
        return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]

    def begin(self, tokens: Tokens, cell: Tensor, history: Sequence[tuple[Place, Decision]] = ()) -> None:
        """Tell the recorder, if there is one, that a forward begins."""
        if (recorder := self.recorder) is not None:
            recorder.begin(tokens, cell, history)

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

    def record(self, place: Place, decision: Decision, tokens: Tokens) -> None:
        """Tell the recorder, if there is one, about a decision."""
        if (recorder := self.recorder) is not None:
            recorder.step(place, decision, tokens)


_SWITCHED: ContextVar[Mapping[tuple[int, str], tuple["_Switch", ...]]] = ContextVar(
    "switched", default=MappingProxyType({})
)
"""What is switched in this thread or task: of each state, by its id and the name of its counter, the open blocks."""
_COUNTING = Lock()


@contextmanager
def switched(states: Sequence[Reduction], name: Literal["disabling", "recording"], value: Any) -> Iterator[None]:
    """Switch every state for the length of a ``with`` block, in this thread or task alone.

    Args:
        states: Of one or several models.
        name: "disabling", or "recording".
        value: True, or a `Recorder`.
    """
    blocks = {(id(state), name): _Switch(state, value) for state in states}
    open_blocks = _SWITCHED.get()
    _SWITCHED.set({**open_blocks, **{key: (*open_blocks.get(key, ()), block) for key, block in blocks.items()}})
    _count(states, name, 1)
    try:
        yield
    finally:
        _count(states, name, -1)
        left = dict(_SWITCHED.get())  # others may have been entered or left since, in any order
        for key, block in blocks.items():
            left[key] = tuple(other for other in left.get(key, ()) if other is not block)
        _SWITCHED.set({key: others for key, others in left.items() if others})


@dataclass(frozen=True, eq=False)
class _Switch:
    """One open block: the state, kept alive so that its id stays its own, and the value."""

    state: Reduction
    value: Any


def _count(states: Sequence[Reduction], name: str, step: int) -> None:
    with _COUNTING:
        for state in states:
            setattr(state, name, getattr(state, name) + step)


class AttentionCues(NamedTuple):
    """What a layer's attention hands out, each only if asked for, and without gradients.

    Attributes:
        query: ``(B, H, Q, Dh)``.
        key: ``(B, H, M, Dh)``.
        cls_query: ``(B, H, 1, Dh)``, query of the image's [CLS].
    """

    query: Tensor | None = None
    key: Tensor | None = None
    cls_query: Tensor | None = None


class CueRequest:
    """What a layer's attention is asked for; the answer stays here, so that modules return what they always do.

    No dataclass: FSDP copies those among a layer's arguments when it casts them.

    Attributes:
        config: Computes the attention.
        needs: Cues to hand out.
        text_length: Words at the front of a stream of words and patches; None where all queries are words.
    """

    def __init__(
        self, config: ReductionConfig, needs: frozenset[str] = frozenset(), text_length: int | None = None
    ) -> None:
        """Ask for cues."""
        self.config, self.needs, self.text_length = config, needs, text_length
        self._shown = AttentionCues()

    def take(self) -> AttentionCues:
        """The cues of the last attention that was asked; they are not kept here, where a checkpoint would hold them."""
        shown, self._shown = self._shown, AttentionCues()
        return shown

    def answer(self, query: Tensor, key: Tensor, cls_query: Callable[[], Tensor]) -> None:
        """Keep what is needed of an attention.

        Args:
            query: ``(B, H, Q, Dh)``.
            key: ``(B, H, M, Dh)``.
            cls_query: Gives the query ``(B, H, 1, Dh)`` of the image's [CLS].
        """
        if not self.needs & {KEYS, TEXT_ROWS, CLS_ROW}:
            return
        with torch.no_grad():
            self._shown = AttentionCues(
                query[:, :, : self.text_length].detach() if TEXT_ROWS in self.needs else None,
                key.detach(),
                cls_query().detach() if CLS_ROW in self.needs else None,
            )


class Between:
    """What happens to tokens between the attention and the feed-forward part of one layer, in one forward.

    A checkpoint around the layer may run it once more in the backward pass; nobody takes notes then.

    Attributes:
        decision: What the reducer has decided.
        after: The tokens as they enter the feed-forward part.
    """

    decision: Decision
    after: Tokens

    def __init__(self, reduction: Reduction, place: Place, tokens: Tokens, cues: Callable[[Tokens], Cues]) -> None:
        """Prepare a reduction.

        Args:
            reduction: The state of the model.
            place: A layer with a reducer.
            tokens: As they enter the layer.
            cues: From the tokens after attention to what the reducer sees.
        """
        self._reduction, self._place, self._tokens, self._cues = reduction, place, tokens, cues
        self._done = False

    def __call__(self, states: Tensor) -> Tensor:
        """Reduce.

        Args:
            states: ``(B, N, D)`` after attention, of the layer's own stream, which is the first one.

        Returns:
            ``(B, K, D)``, of the same stream.
        """
        reducer = self._reduction.reducers[self._place]
        before = dict(vars(reducer)) if self._done and isinstance(reducer, nn.Module) else {}
        with autocast_off(states.device):
            tokens = self._tokens.with_streams(states, *self._tokens.streams[1:])
            decision = self._reduction.decide(reducer, self._cues(tokens))
            tokens = tokens.reduce(decision)
        if not self._done:
            self.after, self.decision, self._done = tokens, decision, True
            self._reduction.record(self._place, decision, tokens)
        elif isinstance(reducer, nn.Module):
            vars(reducer).update(before)  # which owes for the first time alone
        return tokens.streams[0]


class LayerInParts(GradientCheckpointingLayer):
    """A layer in whose forward tokens can be reduced; of such a layer the parts are checkpointed, not the decision."""

    def in_parts(
        self, between: Between, feed_forward: Callable[[Tensor], Tensor], attend: Callable[..., Tensor], *inputs: Any
    ) -> Tensor:
        """Run the layer.

        Args:
            between: What happens after attention.
            feed_forward: The second part.
            attend: The first part.
            *inputs: Of the first part.
        """
        return self._part(feed_forward, between(self._part(attend, *inputs)))

    def _part(self, part: Callable[..., Tensor], *inputs: Any) -> Tensor:
        if self.gradient_checkpointing and self.training:
            states: Tensor = self.__dict__[_CHECKPOINT](part, *inputs)
            return states
        return part(*inputs)

    @property
    def _gradient_checkpointing_func(self) -> Callable[..., Any]:
        """What transformers calls around a layer's forward."""
        return self._whole

    @_gradient_checkpointing_func.setter
    def _gradient_checkpointing_func(self, checkpoint: Callable[..., Any]) -> None:
        self.__dict__[_CHECKPOINT] = checkpoint

    def _whole(self, forward: Any, *inputs: Any) -> Any:
        if forward.keywords.get("between") is not None:
            return forward(*inputs)
        return self.__dict__[_CHECKPOINT](forward, *inputs)


_CHECKPOINT = "_gradient_checkpointing_func"


@dataclass(frozen=True)
class Backbone:
    """How a model family is patched.

    Attributes:
        name: Its name in presets and messages.
        root: The transformers class that is patched wherever it occurs in a model.
        classes: transformers class to its patched subclass, for the root and the modules below it.
        layers: From a root module to the layers of each stack, in the order in which they run.
        encoders: From a root module to the module that runs each stack.
        embedders: From a root module to the modules that run before the cross-modal layers.
        widths: From a root module to the width of each stack.
        tokens: From a root module to the tokens of each stack that a reduction without regard to modality can choose
            from: those of the longest text, where it is in the same stream, and of a picture of the model's size.
        example_bytes: From a root module to the bytes of activations that one example holds at most in inference,
            roughly, before anything is reduced.
        pooled: Classes of heads that read the pooled vector alone.
        faster: Those of ``classes`` that are replaced for speed alone; a user's subclass of one stays as it is.
        unfit: From a stack and a layer of it to the reason why it cannot reduce, or None.
    """

    name: str
    root: type[nn.Module]
    classes: dict[type[nn.Module], type[Any]]
    layers: Callable[[Any], dict[str, Sequence[nn.Module]]]
    encoders: Callable[[Any], dict[str, nn.Module]]
    embedders: Callable[[Any], Sequence[nn.Module]]
    widths: Callable[[Any], dict[str, int]]
    tokens: Callable[[Any], dict[str, int]]
    example_bytes: Callable[[Any], int]
    pooled: frozenset[type[nn.Module]] = frozenset()
    faster: frozenset[type[nn.Module]] = frozenset()
    unfit: Callable[[str, int], str | None] = lambda stack, layer: None

    def __post_init__(self) -> None:
        """Give each subclass its parent's ``__name__``: ``save_pretrained`` writes that into the config."""
        for parent, patched in self.classes.items():
            patched.__name__ = parent.__name__

    def patched_class(self, cls: type[nn.Module]) -> type[nn.Module] | None:
        """The class that takes a class's place, or None if it stays; a user's subclass gets one of its own.

        Raises:
            InputError: If a user's subclass overrides a method that is replaced.
        """
        parent = next((base for base in cls.__mro__ if base in self.classes), None)
        if parent is None or issubclass(cls, self.classes[parent]) or (cls is not parent and parent in self.faster):
            return None
        patched = self.classes[parent]
        return patched if cls is parent else subclasses.combined(patched, cls)

    def original_class(self, cls: type[nn.Module]) -> type[nn.Module] | None:
        """The class whose place a patched class takes; None for a class that is not patched."""
        own = subclasses.original(cls)
        return own or next((parent for parent, patched in self.classes.items() if cls is patched), None)

    def is_patched(self, module: nn.Module) -> bool:
        """Whether the class of a module is patched, even if another library has changed it since then."""
        return isinstance(module, tuple(self.classes.values()))
