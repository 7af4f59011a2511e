"""What the layers of all families share: attention, and a reduction between attention and feed-forward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from pumer.backbones.state import Reduction
from pumer.backbones.streams import autocast_off
from pumer.reducers.base import CLS_ROW, KEYS, ROWS, Place, attention
from pumer.reducers.cues import Cues
from pumer.tokens import Tokens


class LayerCall:
    """What a layer is called with beside its inputs: its reducer, if it has one, and the cues for it.

    The layer's attention leaves the cues here, so that modules return what transformers' modules return. No dataclass:
    FSDP copies those among a layer's arguments when it casts them. A checkpoint around the layer may run it again in
    the backward pass; only the first run counts, and is recorded.

    Attributes:
        attention: The attention of this model's cross-modal layers.
        reducer: None where the layer does not reduce.
    """

    def __init__(self, reduction: Reduction, place: Place | None = None, tokens: Tokens | None = None) -> None:
        """Prepare the call of one layer.

        Args:
            reduction: The state of the model.
            place: The layer, if it has a reducer.
            tokens: As they enter such a layer.
        """
        self.attention = reduction.config.attention.attend
        self.reducer = None if place is None else reduction.reducers[place]
        self._reduction, self._place, self._tokens = reduction, place, tokens
        self._cues: dict[str, Any] = {}
        self._after: Tokens | None = None
        self._done = False

    def collect(self, query: Tensor, key: Tensor, cls_query: Callable[[], Tensor] | None = None) -> None:
        """Keep what the reducer needs of an attention, without gradients.

        Args:
            query: ``(B, H, Q, Dh)``.
            key: ``(B, H, M, Dh)``.
            cls_query: Gives the query ``(B, H, 1, Dh)`` of the image's [CLS] where the image is a stream of its own;
                without it, an attention over the words alone.
        """
        if self.reducer is None or self._tokens is None:
            return
        needs = self.reducer.needs
        if not needs & {KEYS, *ROWS}:
            return
        with torch.no_grad():
            if len(self._tokens.streams) == 2 and cls_query is None:
                if KEYS in needs:
                    self._cues["own_key"] = key.detach()
                return
            self._cues["key"] = key.detach()
            if needs & ROWS:
                self._cues["query"] = query.detach()
            if CLS_ROW in needs and cls_query is not None:
                self._cues["cls_query"] = cls_query()

    def reduce(self, states: Tensor) -> Tensor:
        """Reduce between attention and feed-forward.

        Args:
            states: ``(B, N, D)``, of the layer's own stream, which is the first one.

        Returns:
            ``(B, K, D)``, of the same stream.
        """
        reducer, reduction = self.reducer, self._reduction
        assert reducer is not None and self._place is not None and self._tokens is not None  # for the type checker
        before = dict(vars(reducer)) if self._done and isinstance(reducer, nn.Module) else {}
        with autocast_off(states.device):
            tokens = self._tokens.with_streams(states, *self._tokens.streams[1:])
            bias, probabilities = tokens.biases[-1], reduction.config.attention.probabilities
            layer = self._place[1]
            cues = Cues(tokens, **self._cues, bias=bias, probabilities=probabilities, layer=layer)
            self._cues = {}  # a checkpoint would hold them
            decision = reduction.decide(reducer, cues)
            tokens = tokens.reduce(decision)
        if not self._done:
            self._after, self._done = tokens, True
            reduction.record(self._place, decision, tokens)
        elif isinstance(reducer, nn.Module):
            vars(reducer).update(before)  # its losses count once
        return tokens.streams[0]

    def take(self, states: Tensor) -> Tokens:
        """The tokens that leave the layer; they are not kept here, where a checkpoint would hold them in a circle.

        Args:
            states: ``(B, K, D)``, what the layer returned.
        """
        after, self._after = self._after, None
        assert after is not None  # for the type checker: the layer has run
        return after.with_streams(states, *after.streams[1:])


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_size: int,
    bias: Tensor | None,
    dropout: float,
    call: LayerCall | None = None,
    cls_query: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Attention without the matrix of probabilities; its cues are left with the layer's call.

    Args:
        query: ``(B, Q, D)``, projected.
        key: ``(B, M, D)``, projected.
        value: ``(B, M, D)``, projected.
        head_size: ``Dh``.
        bias: ``(B, 1, 1, M)`` added to the logits, or None.
        dropout: Of the probabilities.
        call: None where no reducer looks at this attention, which is torch's own.
        cls_query: See `LayerCall.collect`.

    Returns:
        ``(B, Q, D)``.
    """
    query = query.view(*query.shape[:2], -1, head_size).transpose(1, 2)
    key = key.view(*key.shape[:2], -1, head_size).transpose(1, 2)
    value = value.view(*value.shape[:2], -1, head_size).transpose(1, 2)
    attended = (attention if call is None else call.attention)(query, key, value, bias, dropout)
    if call is not None:
        call.collect(query, key, cls_query)
    return attended.transpose(1, 2).flatten(2)


class SplitLayer(GradientCheckpointingLayer):
    """A layer in two parts, `_attend` and `_feed_forward`, between which tokens can be reduced.

    Where it reduces, the parts are checkpointed, not the decision.
    """

    def _attend(self, hidden_states: Tensor, *inputs: Any) -> Tensor:
        raise NotImplementedError

    def _feed_forward(self, hidden_states: Tensor) -> Tensor:
        raise NotImplementedError

    def _run(self, call: LayerCall | None, *inputs: Any) -> Tensor:
        """Run both parts; the inputs, and the call, are those of the first one."""
        if call is None or call.reducer is None:
            return self._feed_forward(self._attend(*inputs, call))
        return self._part(self._feed_forward, call.reduce(self._part(self._attend, *inputs, call)))

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
        call = forward.keywords.get("call")
        if call is not None and call.reducer is not None:
            return forward(*inputs)
        return self.__dict__[_CHECKPOINT](forward, *inputs)


_CHECKPOINT = "_gradient_checkpointing_func"


def run_layers(
    layers: nn.ModuleList,
    stack: str,
    tokens: Tokens,
    reduction: Reduction,
    start: int = 0,
    stop: int | None = None,
    hidden_states: list[Tensor] | None = None,
) -> Tokens:
    """Run layers of one stream, with a reduction inside those that have a reducer.

    Args:
        layers: The whole stack.
        stack: Its name.
        tokens: As they enter layer ``start``.
        reduction: The state of the model.
        start: First layer.
        stop: The layer to stop before; None: after the last one.
        hidden_states: Gets the states that enter each layer, if given.
    """
    reducers, plain = reduction.active_reducers(stack), LayerCall(reduction) if stack == "fusion" else None
    states, bias = tokens.streams[0], tokens.biases[0]
    for index in range(start, len(layers) if stop is None else stop):
        if hidden_states is not None:
            hidden_states.append(states)
        call = plain
        if index in reducers:
            call = LayerCall(reduction, (stack, index), tokens.with_streams(states))
        output = layers[index](states, bias, call=call)
        states = output[0] if isinstance(output, tuple) else output
        if call is not None and call is not plain:
            tokens = call.take(states)
            states, bias = tokens.streams[0], tokens.biases[0]
    return tokens.with_streams(states)
