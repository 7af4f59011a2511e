"""One prompt on its way through a decoder: which tokens each layer sees, and what is decided about them."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from pumer.backbones.grids import Grids
from pumer.backbones.prefixes import (
    Prefix,
    drop_stale,
    is_row,
    making_graph,
    newest_keys,
    past_tokens,
    prefixes_of,
    real_columns,
)
from pumer.backbones.shortening import answered
from pumer.backbones.state import Reduction
from pumer.backbones.streams import autocast_off
from pumer.functional import gather_tokens
from pumer.reducers.base import KEYS, ROWS, Reducer
from pumer.reducers.cues import Cues
from pumer.reducers.learned import LearnedReducer
from pumer.tokens import Decision, Segments, Tokens
from pumer.utils.errors import InputError


@dataclass(eq=False)
class Stretch:
    """The layers between two reductions, which see the same tokens.

    Attributes:
        first: Its first layer.
        tokens: Those that enter it, without their states.
        mask: ``(B, N)`` bool, which are real; None: all.
        rope: Cosine and sine of their positions, or None: as the loop hands them over.
        silent: ``(B, N)`` bool, those that do not ask, see `Cues`; None: all do.
        prefixes: What layers have in the cache afterwards, by what they had before.
    """

    first: int
    tokens: Tokens
    mask: Tensor | None
    rope: tuple[Tensor, ...] | None = None
    silent: Tensor | None = None
    prefixes: dict["Prefix | None", Prefix] = field(default_factory=dict)


class Observed:
    """What the attention of a reducing layer leaves for the reducer; a checkpoint may run the layer twice.

    Attributes:
        query: ``(B, H, N, Dh)``, so that its product with the keys needs the usual scale; None if nobody asks.
        key: ``(B, Hkv, M, Dh)``, with whatever the cache holds beside.
    """

    def __init__(self, needs: frozenset[str]) -> None:
        """Prepare for what a reducer needs."""
        self.query: Tensor | None = None
        self.key: Tensor | None = None
        self._needs = needs

    def see(self, query: Tensor, key: Tensor, scaling: float | None) -> None:
        """Keep what is needed, without gradients."""
        if self._needs & {KEYS, *ROWS}:
            self.key = key.detach()
        if self._needs & ROWS:
            usual = query.shape[-1] ** -0.5
            query = query.detach()
            self.query = query if scaling in (None, usual) else query * (scaling / usual)


class Prompt:
    """One forward of a patched decoder, and what its layers see in it.

    No dataclass, like `pumer.backbones.layers.LayerCall`.

    Attributes:
        reduction: The state of the model.
    """

    def __init__(
        self,
        reduction: Reduction,
        image: Callable[[], Tensor | None],
        cells: Callable[[Tensor], Grids],
        labels: Tensor | None = None,
    ) -> None:
        """Prepare one forward.

        Args:
            reduction: The state of the model.
            image: Gives ``(B, N)`` bool, which tokens are those of images; None: there are none.
            cells: From that to where the image tokens stand.
            labels: ``(B, N)``, of what is to be said, -100 for the prompt; None where nothing is given for training.
        """
        self.reduction = reduction
        self._image, self._cells, self._labels = image, cells, labels
        self._config: Any = None
        self._later: Tensor | None = None
        self._stretches: list[Stretch] = []
        self._reducers: Mapping[int, Reducer] = {}
        self._decisions: dict[int, tuple[Tokens, Decision]] = {}
        self._masks: dict[tuple[Prefix | Stretch, torch.device], Any] = {}
        self._past = self._length = 0

    def open(self, config: Any, states: Tensor, attention_mask: Any, cache: Any) -> bool:
        """Begin the forward; False if no layer needs anything else than the loop hands over.

        Args:
            config: Of the text model.
            states: ``(B, N)`` or ``(B, N, D)``, the tokens that enter.
            attention_mask: As the text model gets it: ``(B, M)``, or what generate has made of it, or None.
            cache: The cache, or None.
        """
        self._config, self._length = config, states.shape[1]
        prompt = states.shape[1] > 1
        counts = prompt or not getattr(cache, "is_compileable", False)  # without asking the device for every word
        if counts and prefixes_of(cache) and not making_graph():
            drop_stale(cache)
        reducers = self.reduction.active_reducers("decoder") if prompt else {}
        image = self._image() if reducers or (prompt and self.reduction.recorder is not None) else None
        if image is None and not prefixes_of(cache):
            return False
        self._later = real_columns(attention_mask)
        if image is not None:
            self._past = past_tokens(cache)
            self._begin(image, reducers, states)
        return bool(self._stretches or prefixes_of(cache))

    def _begin(self, image: Tensor, reducers: Mapping[int, Reducer], states: Tensor) -> None:
        N, image, real = states.shape[1], image.to(states.device), None
        if self._later is not None:
            real = self._later[:, self._past : self._past + N].to(states.device)
            image = image & real
        lengths = self._lengths(image, real)
        slots = max(text for text, _ in lengths), max(images for _, images in lengths)
        if slots[1] == 0:
            return
        kind = (image & ~torch.cat([torch.zeros_like(image[:, :1]), image[:, :-1]], dim=1)).cumsum(dim=1)
        mask = torch.ones_like(image) if real is None else real
        segments = Segments.of(
            torch.where(image, kind, 0), torch.zeros_like(image), mask, slots, (0, 0), True, lengths
        )  # fmt: skip
        origin = partial(slots_of, mask)
        tokens = Tokens((), mask.float(), (None,), 0, origin, segments=segments)
        self._reducers = reducers
        self._stretches.append(Stretch(0, tokens, real, silent=answered(self._labels, mask & ~image)))
        if self.reduction.recorder is not None:
            self.reduction.begin(tokens, self._cells(image))

    def _lengths(self, image: Tensor, real: Tensor | None) -> tuple[tuple[int, int], ...]:
        """Text and image tokens of each sample, or in a graph the most that they can be: its only look at data."""
        (B, N), given = image.shape, self.reduction.config.image_tokens
        if making_graph():
            if given is None:
                raise RuntimeError(
                    "a compiled prompt needs image_tokens, how many image tokens each prompt has, in the reduction "
                    "config; or compile only decoding, as generate does with a static cache"
                )
            return ((N - given, given),) * B
        found = image.sum(dim=1) if real is None else torch.stack([image.sum(dim=1), real.sum(dim=1)])
        images, reals = (found.tolist(), [N] * B) if real is None else found.tolist()
        if given is not None and any(images) and any(n != given for n in images):  # a later prompt may have none
            raise InputError(f"image_tokens is {given}, but the prompts have {sorted(set(images))} image tokens each")
        return tuple((n - v, v) for n, v in zip(reals, images, strict=True))

    def enter(self, embeds: Tensor) -> Tensor:
        """What enters the first layer ``(B, N, D)``, as the reducers that learn change it."""
        if self._stretches and self._reducers:
            tokens = self._stretches[0].tokens
            assert tokens.segments is not None  # for the type checker: those of a prompt have them
            image = tokens.mask & (tokens.segments.segment > 0)
            for reducer in self._reducers.values():
                if isinstance(reducer, LearnedReducer):
                    embeds = reducer.enter(embeds, image)
        return embeds

    def stretch(self, layer: int) -> Stretch | None:
        """The stretch that a layer is in, if this forward has any."""
        return next((stretch for stretch in reversed(self._stretches) if stretch.first <= layer), None)

    def inputs(self, layer: int, states: Tensor, given: dict[str, Any]) -> dict[str, Any]:
        """What a layer sees, from what the loop hands to it by name."""
        cache: Any = given.get("past_key_values")
        stretch = self.stretch(layer)
        if stretch is not None and stretch.rope is not None:  # in a prompt, after a reduction
            rope = tuple(part.to(states.device) for part in stretch.rope)
            mask = self._prompt_mask(stretch, layer, states, cache)
            # without positions: FlashAttention would take their gaps for the borders of packed sequences
            return {**given, "attention_mask": mask, "position_embeddings": rope, "position_ids": None}
        prefix = prefixes_of(cache).get(layer)
        if prefix is None or (prefix.mask is None and given.get("attention_mask") is None):
            return given
        key, (batch, length, _) = (prefix, states.device), states.shape  # one for all layers that have the same
        if key not in self._masks:
            row: Any = given.get("attention_mask")
            total, _ = cache.get_mask_sizes(length, layer)
            if is_row(row) and not making_graph() and not getattr(cache, "is_compileable", False):
                self._masks[key] = prefix.row(row, total)
            else:
                columns = prefix.columns(self._later, total, batch, states.device)
                self._masks[key] = self._causal(columns, layer, states, cache)
        return {**given, "attention_mask": self._masks[key]}

    def _prompt_mask(self, stretch: Stretch, layer: int, states: Tensor, cache: Any) -> Any:
        """For a shortened prompt; what the layer then has of it is noted in the cache."""
        after: Prefix | None = None
        if cache is not None:
            prefixes = prefixes_of(cache)
            before = prefixes.get(layer)
            if before not in stretch.prefixes:
                stretch.prefixes[before] = self._extended(before, stretch)
            after = stretch.prefixes[before]
            cache.pumer_prefixes = {**prefixes, layer: after}
        seen = after or stretch
        if (key := (seen, states.device)) not in self._masks:
            self._masks[key] = self._causal(seen.mask, layer, states, cache)
        return self._masks[key]

    def _causal(self, columns: Tensor | None, layer: int, states: Tensor, cache: Any) -> Any:
        return create_causal_mask(
            config=self._config,
            inputs_embeds=states,
            attention_mask=None if columns is None else columns.to(states.device),
            past_key_values=cache,
            layer_idx=layer,
        )

    def _extended(self, before: Prefix | None, stretch: Stretch) -> Prefix:
        """What a layer has of this prompt and of those before it."""
        size, mask = stretch.tokens.size, stretch.mask
        length = size.shape[1]
        if self._past:
            before = before or Prefix(None, 0, 0)
            old = before.columns(self._later, self._past - before.shift, len(size), size.device)
            length += self._past - before.shift
            if old is not None or mask is not None:
                mask = torch.ones_like(size, dtype=torch.bool) if mask is None else mask
                old = mask.new_ones(len(mask), length - mask.shape[1]) if old is None else old
                mask = torch.cat([old, mask], dim=1)
        return Prefix(mask, length, self._past + self._length - length)

    def observe(self, layer: int) -> Observed | None:
        """What the attention of a layer is to leave, if the layer reduces."""
        reducer = self._reducers.get(layer)
        return None if reducer is None else Observed(reducer.needs)

    def reduce(self, layer: int, states: Tensor, seen: Observed, given: Mapping[str, Any]) -> Tensor:
        """Reduce after a layer.

        Args:
            layer: The layer.
            states: ``(B, N, D)`` that leave it.
            seen: What its attention left.
            given: What it was called with by name.

        Returns:
            ``(B, K, D)``.
        """
        if layer in self._decisions:  # a checkpoint runs the layer again in the backward pass
            return self._carried(states, layer)
        stretch = self.stretch(layer)
        assert stretch is not None  # for the type checker: a layer that reduces has tokens
        before = stretch.tokens.to(states.device)
        reducer, tokens = self._reducers[layer], before.with_streams(states)
        key = (
            seen.key
            if seen.key is None
            else newest_keys(seen.key, states.shape[1], layer, given.get("past_key_values"))
        )
        silent = None if stretch.silent is None else stretch.silent.to(states.device)
        with autocast_off(states.device):
            cues = Cues(tokens, key, seen.query, layer=layer, causal=True, silent=silent)
            decision = self.reduction.decide(reducer, cues)
            after = tokens.reduce(decision)
        self._decisions[layer] = before, decision
        mask: Tensor | None = after.mask
        if decision.known is not None and (stretch.mask is None or not making_graph()):
            mask = None if all(sum(known) == decision.outputs for known in decision.known) else mask
        rope = tuple(_picked(part, decision.index) for part in given["position_embeddings"])
        silent = None if silent is None else decision.select(silent)
        self._stretches.append(Stretch(layer + 1, after.with_streams(), mask, rope, silent))
        self.reduction.record(("decoder", layer), decision, after)
        return after.streams[0]

    def _carried(self, states: Tensor, layer: int) -> Tensor:
        tokens, decision = self._decisions[layer]
        device = states.device
        with autocast_off(device):
            return tokens.to(device).with_streams(states).reduce(decision.to(device)).streams[0]

    def carried(self, dense: Tensor, layer: int) -> Tensor:
        """Features of all tokens ``(B, N, D)`` as those of the tokens that leave a layer."""
        for before in sorted(self._decisions):
            if before <= layer:
                dense = self._carried(dense, before)
        return dense

    def close(self, output: Any) -> Any:
        """Give the states in a text model's output the length of the input back."""
        if len(self._stretches) < 2:
            return output
        if isinstance(output, tuple):
            return (self._expanded(output[0], sys.maxsize), *output[1:])
        output.last_hidden_state = self._expanded(output.last_hidden_state, sys.maxsize)
        if output.hidden_states is not None:
            *inner, last = output.hidden_states
            entering = [self._expanded(states, layer) for layer, states in enumerate(inner)]
            output.hidden_states = (*entering, None if last is None else output.last_hidden_state)
        return output

    def _expanded(self, states: Any, layer: int) -> Any:
        """States of a layer's tokens for all that entered; one that is gone shows what the one before it does."""
        stretch = self.stretch(layer)
        if states is None or stretch is None or stretch.rope is None:
            return states
        tokens = stretch.tokens.to(states.device)
        owner, entered = tokens.source, tokens.origin() >= 0
        rank = torch.arange(owner.shape[1], device=owner.device)
        owner = owner.gather(1, torch.where(owner >= 0, rank, 0).cummax(dim=1)[0])
        shown = (entered & (owner >= 0))[:, :, None].to(states.dtype)
        return gather_tokens(states, owner.clamp(min=0)) * shown


def _picked(rope: Tensor, index: Tensor) -> Tensor:
    """Of cosines or sines ``(..., B or 1, N, Dh)`` those of the tokens that are left."""
    rope = rope.expand(*rope.shape[:-3], len(index), *rope.shape[-2:])
    if rope.ndim == 3:
        return gather_tokens(rope, index)
    return torch.stack([gather_tokens(part, index) for part in rope.unbind(dim=0)])


def slots_of(mask: Tensor) -> Tensor:
    """``(B, N)`` int64, every real token in its own slot."""
    return torch.where(mask, torch.arange(mask.shape[1], device=mask.device), -1)
