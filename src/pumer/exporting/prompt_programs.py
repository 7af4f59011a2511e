"""The two programs of a generative model: one that reads a prompt, and one that goes on by a token.

A prompt has a fixed length, with padding on its left. What it leaves are the logits of the token that comes next, the
keys and values of each layer, of different lengths where a layer reduces, and which of their columns are real. The
second program takes these with any number of free columns after them, and gives back the keys and values of one token.
"""

from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pumer.backbones.encoding import encode
from pumer.backbones.prefixes import prefixes_of
from pumer.functional import ordered
from pumer.reducers.shortening.base import ImageTokens, RatioShorteningConfig

EXPORTED_ATTENTION = "pumer_exported"


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask of torch's own attention, but what is padding sees all: runtimes make no numbers of nothing."""
    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    return None if mask is None else mask | ~mask.any(dim=-1, keepdim=True)


AttentionMaskInterface.register(EXPORTED_ATTENTION, _mask)
AttentionInterface.register(EXPORTED_ATTENTION, ALL_ATTENTION_FUNCTIONS["sdpa"])


class _Columns(DynamicLayer):  # type: ignore[misc]
    """The cache of one layer, in which stands only what a forward adds.

    Attributes:
        past: Keys and values ``(B, Hkv, N, Dh)`` that were there before; None: nothing was.
    """

    def __init__(self, past: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        self.past, self.is_initialized = past, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values = key_states, value_states
        if self.past is None:
            return key_states, value_states
        return torch.cat([self.past[0], key_states], dim=2), torch.cat([self.past[1], value_states], dim=2)

    def get_seq_length(self) -> int:
        return 0 if self.past is None else self.past[0].shape[2]


class Prefill(nn.Module):
    """Reads one prompt about one image.

    The model's own reduction inside the decoder must have ``image_tokens``, and none before it.
    """

    def __init__(self, model: Any, text: Any, stages: Sequence[int], before: RatioShorteningConfig | None) -> None:
        """Keep the parts.

        Args:
            model: The model that generates.
            text: Its decoder.
            stages: First layer of each stretch of layers that see the same tokens.
            before: What shortens the prompt before the decoder.
        """
        super().__init__()
        self.model, self.text, self.stages, self.before = model, text, stages, before

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """From ``input_ids``, ``attention_mask (1, N)`` and ``pixel_values`` to logits, masks, keys and values."""
        ids, mask, pixels = inputs
        positions, root, seen = (mask.cumsum(dim=1) - 1).clamp(min=0), self.model.model, list[Tensor]()
        given: dict[str, Any] = {"pixel_values": pixels}
        if self.before is not None:
            ids, mask, positions, given = self._shortened(self.before, ids, mask, positions, pixels)
        cache = Cache(layers=[_Columns() for _ in self.text.layers])
        hook = self.text.norm.register_forward_hook(lambda module, args, output: seen.append(output))
        try:
            root(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, **given)
        finally:
            hook.remove()
        return (
            self.model.lm_head(seen[0][:, -1]),
            *(self._real(cache, first, mask) for first in self.stages),
            *(layer.keys for layer in cache.layers),
            *(layer.values for layer in cache.layers),
        )

    def _real(self, cache: Cache, layer: int, mask: Tensor) -> Tensor:
        """``(1, M)`` int64, which columns of a layer's cache are real."""
        prefix = prefixes_of(cache).get(layer)
        if prefix is None:
            return mask.clone()
        return mask.new_ones(1, prefix.length) if prefix.mask is None else prefix.mask.long()

    def _shortened(
        self, config: RatioShorteningConfig, ids: Tensor, mask: Tensor, positions: Tensor, pixels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """The prompt with fewer image tokens, and their features; as of `pumer.shorten`, but of fixed length."""
        root = self.model.model
        encoded = encode(root, {"pixel_values": pixels})["image"]
        features, shown = encoded.features, encoded.shown
        assert shown is not None  # for the type checker: the vision encoders that are exported show something
        empty = features.new_zeros(0, features.shape[1])
        cell = torch.full((len(features), 3), -1)
        choice = config.choose(
            ImageTokens(features, empty, cell, lambda: shown.states, lambda: shown.key, lambda: shown.attention)
        )
        place = ids == root.config.image_token_id
        stays = torch.zeros(len(features), dtype=torch.int64).index_fill(0, choice.index, 1)
        rank = (place.long().cumsum(dim=1) - 1).clamp(min=0)
        keep = (mask > 0) & (~place | (stays[rank] > 0))
        fewer = len(features) - len(choice.index)
        columns = ordered(keep)[:, fewer:]
        kept = features[choice.index] if choice.features is None else choice.features
        outputs = {"mm_encoder_outputs": {"image": encoded.output([kept], [])}}
        ids, positions, real = (x.gather(1, columns) for x in (ids, positions, keep.long()))
        return ids * real, real, positions * real, outputs  # what goes leaves no placeholder in a free place


class Decode(nn.Module):
    """Goes on by one token, in a batch of any size."""

    def __init__(self, model: Any, text: Any, stages: Sequence[int]) -> None:
        """Keep the parts; see `Prefill`."""
        super().__init__()
        self.model, self.text, self.stages = model, text, stages

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """From a token, its position, masks, keys and values to the logits, keys and values of one token.

        Args:
            *inputs: ``input_ids (B, 1)``, ``position_ids (B, 1)``; of each stage ``(B, M)`` int64, 1 for columns that
                are real; keys of each layer ``(B, Hkv, M, Dh)``, and values.
        """
        ids, positions, *rest = inputs
        stages, layers = len(self.stages), len(self.text.layers)
        own = torch.ones_like(ids)
        masks = [torch.cat([mask, own], dim=1)[:, None, None] > 0 for mask in rest[:stages]]
        keys, values = rest[stages : stages + layers], rest[stages + layers :]
        cache = Cache(layers=[_Columns(past) for past in zip(keys, values, strict=True)])
        with _masked(self.text.layers, [masks[bisect(self.stages, layer) - 1] for layer in range(layers)]):
            states = self.text(
                inputs_embeds=self.model.get_input_embeddings()(ids),
                attention_mask=masks[0],
                position_ids=positions,
                past_key_values=cache,
            ).last_hidden_state
        logits = self.model.lm_head(states[:, -1])
        return logits, *(layer.keys for layer in cache.layers), *(layer.values for layer in cache.layers)


@contextmanager
def _masked(layers: Sequence[nn.Module], masks: Sequence[Tensor]) -> Iterator[None]:
    """Let each layer attend by a mask of its own, in place of the one that the loop hands to all."""

    def hook(mask: Tensor) -> Any:
        return lambda layer, args, kwargs: (args, {**kwargs, "attention_mask": mask})

    handles = [
        layer.register_forward_pre_hook(hook(mask), with_kwargs=True) for layer, mask in zip(layers, masks, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def exported_attention(text: Any) -> Iterator[None]:
    """Let a decoder attend as programs do."""
    config = text.config
    own = config._attn_implementation
    config._attn_implementation = EXPORTED_ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = own
