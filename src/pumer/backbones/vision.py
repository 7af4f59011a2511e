"""Reduction inside the vision encoder of a generative model, whose output keeps its length: the decoder counts on it.

Merged patches leave the encoder with the state of the token that holds them. The first token, [CLS] where there is one,
stays.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import is_flash_attention_requested

from pumer.backbones.prefixes import real_columns
from pumer.backbones.prompt import slots_of
from pumer.backbones.state import Reduction
from pumer.backbones.streams import autocast_off
from pumer.functional import gather_tokens, ordered
from pumer.reducers.base import KEYS, ROWS
from pumer.reducers.cues import Cues
from pumer.tokens import Tokens, attention_bias


class Encoding:
    """One run of a vision encoder; no dataclass, like `pumer.backbones.layers.LayerCall`.

    Attributes:
        after: The tokens that leave each reducing layer, without their states.
    """

    def __init__(self) -> None:
        """Nothing has left a layer yet."""
        self.after: list[tuple[int, Tokens]] = []

    def expanded(self, states: Tensor, layer: int) -> Tensor:
        """States that leave a layer, before it reduces ``(B, K, D)``, as those of all patches ``(B, N, D)``."""
        tokens = [tokens for place, tokens in self.after if place < layer]
        return tokens[-1].expand(states) if tokens else states


class VisionModel:
    """The model around the encoder, of which some families take the states between layers."""

    encoder: Any

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        encoding = Encoding()
        output = super().forward(*args, pumer=encoding, **kwargs)  # type: ignore[misc]
        if encoding.after and not isinstance(output, tuple) and output.hidden_states is not None:
            output.hidden_states = tuple(  # the first ones enter layer 0; those that nobody asked for are None
                each if each is None else encoding.expanded(each, layer)
                for layer, each in enumerate(output.hidden_states, start=-1)
            )
        return output


class Encoder:
    """The loop over the layers of a vision encoder."""

    layers: nn.ModuleList
    config: Any
    pumer_reduction: Reduction

    def forward(  # noqa: D102
        self, inputs_embeds: Tensor, attention_mask: Any = None, pumer: Encoding | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        reduction, encoding = self.pumer_reduction, pumer or Encoding()
        states, mask, reducers = inputs_embeds, attention_mask, reduction.active_reducers("vision")
        tokens: Tokens | None = None
        for index, layer in enumerate(self.layers):
            if (reducer := reducers.get(index)) is None:
                states = layer(states, mask, **kwargs)
                continue
            if tokens is None:
                states, tokens = self._enter(states, attention_mask)
                mask = self._mask(tokens)
            key, query = _observed(layer, states, reducer.needs)
            tokens = tokens.with_streams(layer(states, mask, **kwargs))
            with autocast_off(states.device):
                decision = reduction.decide(reducer, Cues(tokens, key, query, tokens.biases[0], layer=index))
                tokens = tokens.reduce(decision)
            encoding.after.append((index, tokens.with_streams()))
            states, mask = tokens.streams[0], self._mask(tokens)
        return BaseModelOutput(last_hidden_state=encoding.expanded(states, len(self.layers)))

    def _enter(self, states: Tensor, attention_mask: Any) -> tuple[Tensor, Tokens]:
        """The patches with the real ones first."""
        real = real_columns(attention_mask)
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        bias: Tensor | None = None
        origin: Callable[[], Tensor] = partial(slots_of, mask)
        if real is not None:
            index = ordered(~real)
            rank = torch.arange(index.shape[1], device=index.device).expand_as(index)
            slot = torch.where(real, torch.empty_like(index).scatter_(1, index, rank), -1)
            origin = slot.clone
            states, mask = gather_tokens(states, index), real.gather(1, index)
            bias = attention_bias(mask, states.dtype)
        return states, Tokens((), mask.float(), (bias,), 0, origin)

    def _mask(self, tokens: Tokens) -> Tensor | None:
        """As the attention of the model takes it."""
        bias = tokens.biases[0]
        if bias is None or not is_flash_attention_requested(self.config):
            return bias
        return tokens.mask


@torch.no_grad()
def _observed(layer: Any, states: Tensor, needs: frozenset[str]) -> tuple[Tensor | None, Tensor | None]:
    """Keys and queries of a layer ``(B, H, N, Dh)`` as far as they are needed: it hands none out, so once more."""
    attention, normed = layer.self_attn, layer.layer_norm1(states) if needs & {KEYS, *ROWS} else states
    wanted = (needs & {KEYS, *ROWS}, attention.k_proj), (needs & ROWS, attention.q_proj)
    key, query = (
        project(normed).unflatten(2, (-1, attention.head_dim)).transpose(1, 2) if need else None
        for need, project in wanted
    )
    return key, query
