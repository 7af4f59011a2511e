"""Reduction inside the decoder of a generative model: the layers after a reduction see a shorter prompt.

transformers' own loop runs the layers; nothing of a model is written anew. A patched layer takes the mask, the rotary
embedding and the positions of the tokens that are left in place of those that the loop hands to all layers, and
reduces after it has run. What is left stands at the right end of a buffer, so that the last token stays last. The first
layer always sees the whole prompt: the length of its cache is the one that `generate` counts by.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce, wraps
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pumer.backbones.grids import Grids, Kind, grids_of, note
from pumer.backbones.shortening import FORWARD, TURN, answered, reads_images, shorten_prompts, shortened_generation
from pumer.backbones.state import Reduction
from pumer.backbones.streams import autocast_off
from pumer.functional import gather_tokens
from pumer.reducers.base import KEYS, ROWS, Reducer
from pumer.reducers.cues import Cues
from pumer.reducers.learned import LearnedReducer
from pumer.tokens import Decision, Segments, Tokens
from pumer.utils.errors import InputError

LABELS = "pumer_labels"
"""By this name a forward hands its labels on to the model of images and text."""
OBSERVED = "pumer"
"""Name of the attention function that hands out queries and keys and then calls the model's own one."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """What a shortened layer has of a prompt in its cache; what follows are the tokens that came later.

    Attributes:
        mask: ``(B, L)`` bool, real tokens among the first L columns; None: all of them.
        length: ``L``.
        shift: How many columns fewer they are than in the first layer.
    """

    mask: Tensor | None
    length: int
    shift: int

    def columns(self, later: Tensor | None, total: int, batch: int, device: torch.device) -> Tensor | None:
        """``(B, total)`` bool, all columns that the layer has; None: all are real.

        Args:
            later: ``(B, M)`` bool, the columns of the first layer, or None: all are real.
            total: Columns.
            batch: ``B``, a multiple of the prompts: a cache may have been repeated for several continuations each.
            device: Of the layer.
        """
        if self.mask is None and later is None:
            return None
        mask = torch.ones(batch, total, dtype=torch.bool, device=device)
        if self.mask is not None:
            mask[:, : self.length] = self.mask.to(device).repeat_interleave(batch // len(self.mask), dim=0)
        if later is not None:
            after = later.to(device)[:, self.length + self.shift :][:, : total - self.length]
            mask[:, self.length : self.length + after.shape[1]] = after
        return mask

    def row(self, given: Tensor, total: int) -> Tensor:
        """``(B, 1, 1, total)``, what one word sees in that layer.

        Args:
            given: The same of the first layer, boolean or added to attention logits.
            total: Columns.
        """
        rest = given[..., self.length + self.shift :][..., : total - self.length]
        if self.mask is None:
            real = given.new_ones(len(given), 1, 1, self.length, dtype=torch.bool)
        else:
            real = self.mask.to(given.device).repeat_interleave(len(given) // len(self.mask), dim=0)[:, None, None]
        if given.dtype != torch.bool:
            real = given.new_zeros(real.shape).masked_fill_(~real, torch.finfo(given.dtype).min)
        return torch.cat([real, rest], dim=-1)


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
        if counts and prefixes_of(cache) and not _graph():
            _drop_stale(cache)
        reducers = self.reduction.active_reducers("decoder") if prompt else {}
        image = self._image() if reducers or (prompt and self.reduction.recorder is not None) else None
        if image is None and not prefixes_of(cache):
            return False
        self._later = real_columns(attention_mask)
        if image is not None:
            self._past = _past(cache)
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
        if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing():
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
            if _is_row(row) and not _graph() and not getattr(cache, "is_compileable", False):
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
        key = seen.key if seen.key is None else _newest(seen.key, states.shape[1], layer, given.get("past_key_values"))
        silent = None if stretch.silent is None else stretch.silent.to(states.device)
        with autocast_off(states.device):
            cues = Cues(tokens, key, seen.query, layer=layer, causal=True, silent=silent)
            decision = self.reduction.decide(reducer, cues)
            after = tokens.reduce(decision)
        self._decisions[layer] = before, decision
        mask: Tensor | None = after.mask
        if decision.known is not None and (stretch.mask is None or not _graph()):
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


def _drop_stale(cache: Any) -> None:
    """Forget what does not fit the cache: it was emptied, or filled by a model that was not patched."""
    past, found = int(cache.get_seq_length()), prefixes_of(cache)
    if past == 0:
        cache.pumer_prefixes = {}
    elif not getattr(cache, "is_compileable", False):
        fits = {layer: int(cache.get_seq_length(layer)) == past - prefix.shift for layer, prefix in found.items()}
        cache.pumer_prefixes = {layer: prefix for layer, prefix in found.items() if fits[layer]}


def prefixes_of(cache: Any) -> dict[int, Prefix]:
    """What the shortened layers have of the prompts so far, by layer."""
    found: dict[int, Prefix] = getattr(cache, "pumer_prefixes", None) or {}
    return found


def real_columns(mask: Any) -> Tensor | None:
    """``(B, M)`` bool, which columns of the first layer are real, of an attention mask in any form; None: all."""
    if isinstance(mask, dict):
        mask = mask.get("full_attention")
    if not isinstance(mask, Tensor):
        return None
    if mask.ndim == 4:  # made by generate, for a static cache: the last token sees all that are real
        mask = mask[:, 0, -1]
        return mask if mask.dtype == torch.bool else mask >= 0
    return mask > 0 if mask.dtype != torch.bool else mask


def _sees_all(config: Any, states: Tensor | None, mask: Any, cache: Any) -> bool:
    """Whether one word enters that sees all that every layer has in the cache, so that no layer needs a mask.

    It asks the device, as transformers does about a mask: without one, that does not.
    """
    if states is None or states.shape[1] > 1 or not prefixes_of(cache):
        return False
    if _graph() or getattr(cache, "is_compileable", False):
        return False
    if not config._attn_implementation.startswith(("sdpa", "flash")):  # others always have a mask
        return False
    if any(prefix.mask is not None for prefix in prefixes_of(cache).values()):
        return False
    return mask is None or (isinstance(mask, Tensor) and mask.ndim == 2 and bool((mask > 0).all()))


def _past(cache: Any) -> int:
    """How many tokens the first layer has seen before this forward."""
    if cache is not None and _graph() and getattr(cache, "is_compileable", False):  # which counts on the device
        if prefixes_of(cache):
            raise RuntimeError("only the first prompt can be compiled with a static cache; run later ones eagerly")
        return 0
    return 0 if cache is None else int(cache.get_seq_length())


def _newest(key: Tensor, length: int, layer: int, cache: Any) -> Tensor:
    """Of the keys that an attention sees ``(B, Hkv, M, Dh)`` those of the tokens of this forward."""
    if key.shape[2] == length:
        return key
    if not getattr(cache, "is_compileable", False):
        return key[:, :, -length:]
    at = cache.get_seq_length(layer) - length + torch.arange(length, device=key.device)  # the buffer goes on after them
    return key.index_select(2, at)


def _picked(rope: Tensor, index: Tensor) -> Tensor:
    """Of cosines or sines ``(..., B or 1, N, Dh)`` those of the tokens that are left."""
    rope = rope.expand(*rope.shape[:-3], len(index), *rope.shape[-2:])
    if rope.ndim == 3:
        return gather_tokens(rope, index)
    return torch.stack([gather_tokens(part, index) for part in rope.unbind(dim=0)])


def slots_of(mask: Tensor) -> Tensor:
    """``(B, N)`` int64, every real token in its own slot."""
    return torch.where(mask, torch.arange(mask.shape[1], device=mask.device), -1)


def _is_row(mask: Any) -> bool:
    """Whether a mask is one tensor with a row for one word."""
    return isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[2] == 1


def _graph() -> bool:
    return torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing()


def stock(cls: type[Any]) -> type[Any]:
    """The transformers class that a patched class, or a user's subclass of one, computes as."""
    return next(base for base in cls.__mro__ if base.__module__.startswith("transformers."))


def _without_prompt(encode: Callable[..., Any], kind: Kind) -> Callable[..., Any]:
    """A method that drops the prompt of a forward, with the signature that it has: generate asks for that."""
    named = signature(encode)

    @wraps(encode)
    def encoded(self: Any, *args: Any, pumer: Prompt | None = None, **kwargs: Any) -> Any:
        output = encode(self, *args, **kwargs)
        if self.pumer_reduction.recorder is not None:
            note(self, kind, output, named.bind(self, *args, **kwargs).arguments)
        return output

    return encoded


# ---------------------------------------------------------------- what modules of a patched model do


class VisionLanguage:
    """The model of images and text: knows which tokens are those of images."""

    pumer_reduction: Reduction
    config: Any

    def forward(self, input_ids: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        shortening, ids, short = self.pumer_reduction.shortening, input_ids, None
        labels = kwargs.pop(LABELS, None)
        if shortening is not None and (given := self._images(input_ids, args, kwargs)):
            short = shorten_prompts(self, given if labels is None else {**given, "labels": labels}, shortening)
            args, kwargs, ids = (), dict(short.inputs), short.ids
            input_ids, labels = kwargs.pop("input_ids", None), kwargs.pop("labels", None)
        image = partial(self._image, ids, kwargs.get("inputs_embeds"))
        cells = partial(self._cells, {**kwargs, "input_ids": ids})
        prompt = Prompt(self.pumer_reduction, image, cells, labels)
        if any(place == "decoder" for place, _ in self.pumer_reduction.reducers):
            kwargs["pumer"] = prompt
        elif shortening is not None and self.pumer_reduction.recorder is not None and ids is not None:
            mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
            prompt.open(self.config.get_text_config(), ids, mask, cache)  # it is recorded: no layer reduces
        if (cache := kwargs.get("past_key_values")) is not None and kwargs.get("position_ids") is None:
            _check_continued(cache)
        output = super().forward(input_ids, *args, **kwargs)  # type: ignore[misc]
        return output if short is None else short.close(output)

    def _images(self, input_ids: Tensor | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What a forward is called with, by name, if it encodes images: generate has shortened its prompts before."""
        names = list(signature(stock(type(self)).forward).parameters)[2:]
        given = {**dict(zip(names, args, strict=False)), **kwargs, "input_ids": input_ids}
        return given if reads_images(given) else {}

    def __init_subclass__(cls) -> None:
        """Some families hand what their forward is called with on to the vision encoder, where it does not belong."""
        super().__init_subclass__()
        kinds: tuple[Kind, ...] = "image", "video"
        for kind in kinds:
            if (encode := getattr(stock(cls), f"get_{kind}_features", None)) is not None:
                setattr(cls, f"get_{kind}_features", _without_prompt(encode, kind))

    def _image(self, input_ids: Tensor | None, embeds: Tensor | None) -> Tensor | None:
        names = ("image_token_id", "video_token_id", "image_token_index", "video_token_index")
        ids = sorted({getattr(self.config, name) for name in names if getattr(self.config, name, None) is not None})
        if input_ids is not None:
            found = [input_ids == token for token in ids]
        elif embeds is not None:
            rows = self.get_input_embeddings()(torch.tensor(ids, device=embeds.device))  # type: ignore[attr-defined]
            found = [(embeds == row).all(dim=-1) for row in rows]
        else:
            return None
        return reduce(torch.logical_or, found)

    def _cells(self, inputs: dict[str, Any], image: Tensor) -> Grids:
        return grids_of(self, image, inputs)


class TextModel:
    """The stack of decoder layers."""

    config: Any

    def forward(  # noqa: D102
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        *args: Any,
        pumer: Prompt | None = None,
        **kwargs: Any,
    ) -> Any:
        named = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
        }
        states = input_ids if inputs_embeds is None else inputs_embeds
        if pumer is not None and _sees_all(self.config, states, attention_mask, past_key_values):
            pumer, named["attention_mask"] = None, None  # which lets each layer see all that it has
        if pumer is None or states is None or not pumer.open(self.config, states, attention_mask, past_key_values):
            return super().forward(input_ids, *args, **named, **kwargs)  # type: ignore[misc]
        if inputs_embeds is not None:
            named["inputs_embeds"] = pumer.enter(inputs_embeds)
        if kwargs.get("deepstack_visual_embeds") is not None:
            features = enumerate(kwargs["deepstack_visual_embeds"])
            kwargs["deepstack_visual_embeds"] = [Deep(each, layer, pumer) for layer, each in features]
        return pumer.close(super().forward(input_ids, *args, **named, pumer=pumer, **kwargs))  # type: ignore[misc]


@dataclass(frozen=True, eq=False)
class Deep:
    """Image features ``(image tokens, D)`` that are added after a layer."""

    features: Tensor
    layer: int
    prompt: Prompt


class DeepTextModel(TextModel):
    """A stack of layers, after the first of which image features are added (DeepStack)."""

    def _deepstack_process(self, states: Tensor, image: Tensor, features: Any) -> Tensor:
        if not isinstance(features, Deep):
            return super()._deepstack_process(states, image, features)  # type: ignore[misc]
        dense = torch.zeros(*image.shape, states.shape[2], dtype=states.dtype, device=states.device)
        dense = dense.masked_scatter(image.to(states.device)[:, :, None], features.features.to(dense))
        return states + features.prompt.carried(dense, features.layer)


class DecoderLayer:
    """A layer of the decoder."""

    self_attn: Any

    def forward(self, states: Tensor, *args: Any, pumer: Prompt | None = None, **kwargs: Any) -> Any:  # noqa: D102
        if pumer is None:
            return super().forward(states, *args, **kwargs)  # type: ignore[misc]
        layer = self.self_attn.layer_idx
        kwargs, seen = pumer.inputs(layer, states, kwargs), pumer.observe(layer)
        if seen is None:
            return super().forward(states, *args, **kwargs)  # type: ignore[misc]
        output = super().forward(states, *args, pumer=seen, **kwargs)  # type: ignore[misc]
        return pumer.reduce(layer, output, seen, kwargs)


class Attention:
    """The attention of a layer that reduces: it names `OBSERVED` as the function that it attends by."""

    @property
    def config(self) -> Any:
        """The config, but for the name of the attention function."""
        return ObservedConfig(self.__dict__["config"])

    @config.setter
    def config(self, config: Any) -> None:
        self.__dict__["config"] = config


class ObservedConfig:
    """A text config whose attention function is `OBSERVED`."""

    _attn_implementation = OBSERVED

    def __init__(self, config: Any) -> None:
        """Keep the config."""
        self._config = config

    def __getattr__(self, name: str) -> Any:
        """All other settings."""
        return getattr(self._config, name)


def observed_attention(
    module: nn.Module, query: Tensor, key: Tensor, *args: Any, pumer: Observed | None = None, **kwargs: Any
) -> Any:
    """The model's own attention, which leaves queries and keys for the reducer."""
    if pumer is not None:
        pumer.see(query, key, kwargs.get("scaling"))
    name = module.__dict__["config"]._attn_implementation
    if name == "eager":
        family = sys.modules[stock(type(module)).__module__]
        return family.eager_attention_forward(module, query, key, *args, **kwargs)
    return ALL_ATTENTION_FUNCTIONS[name](module, query, key, *args, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(OBSERVED, observed_attention)


class Generator:
    """A model that generates: shortens prompts, and refuses what would ask anew about the image with every token."""

    generation_config: Any
    model: Any
    pumer_cooperative = frozenset({"forward", "generate", "generate_batch"})
    """What calls the same method of a user's class, which may therefore have one."""

    def __init_subclass__(cls) -> None:
        """A forward with labels says which tokens are the answer; it is called with the same names as before."""
        super().__init_subclass__()
        called = super(cls, cls).forward  # type: ignore[misc]

        @wraps(called)
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("labels") is not None:
                kwargs[LABELS] = kwargs["labels"]
            return super(cls, self).forward(*args, **kwargs)  # type: ignore[misc]

        cls.forward = forward  # type: ignore[attr-defined]

    def generate(self, inputs: Any = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        state = self.model.pumer_reduction
        if state.reduces("decoder"):
            _check_generation(generation_config or self.generation_config, kwargs)
        if state.shortening is not None or hasattr(kwargs.get("past_key_values"), TURN):
            given = kwargs if inputs is None else {**kwargs, "input_ids": inputs}
            defaults = (generation_config, self.generation_config)
            with torch.no_grad():  # as transformers' own generate is
                shortened = shortened_generation(self.model, given, defaults, state.shortening)
            if shortened is not None:
                kwargs = shortened.arguments(given, defaults)
                output = super().generate(None, generation_config, *args, **kwargs)  # type: ignore[misc]
                return shortened.close(output)
        return super().generate(inputs, generation_config, *args, **kwargs)  # type: ignore[misc]

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        if self.model.pumer_reduction.reduces("decoder"):
            raise InputError(
                "generate_batch shares one paged cache among prompts, which a reduction inside the decoder shortens "
                "differently; call generate, or shorten the prompts before the decoder"
            )
        return super().generate_batch(*args, **kwargs)  # type: ignore[misc]


def _check_continued(cache: Any) -> None:
    """Refuse to go on by hand from a prompt that a forward has shortened."""
    if hasattr(cache, FORWARD) and cache.get_seq_length() > 0:
        raise InputError(
            "position_ids is missing: the cache holds a prompt that was shortened, after which positions do not count "
            "on from its length; give position_ids, or call generate"
        )


def _check_generation(default: Any, given: Mapping[str, Any]) -> None:
    settings = {name: given.get(name, getattr(default, name, None)) for name in _ONE_PROMPT}
    for name, value in settings.items():
        if value is not None and value is not _ONE_PROMPT[name]:
            raise InputError(
                f"{name}={value if isinstance(value, bool | int | float | str) else type(value).__name__} does not "
                "go with a reduction inside the decoder: tokens are chosen once, from the whole prompt; leave it out"
            )


_ONE_PROMPT: dict[str, Any] = {
    "use_cache": True,
    "assistant_model": None,
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
    "prefill_chunk_size": None,
    "use_mtp": False,
}
"""Settings of generate to the value that keeps the rule, beside None, that a prompt is looked at once."""
