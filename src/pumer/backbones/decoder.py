"""Reduction inside the decoder of a generative model: the layers after a reduction see a shorter prompt.

transformers' own loop runs the layers; nothing of a model is written anew. A patched layer takes the mask, the rotary
embedding and the positions of the tokens that are left in place of those that the loop hands to all layers, and
reduces after it has run. What is left stands at the right end of a buffer, so that the last token stays last. The first
layer always sees the whole prompt: the length of its cache is the one that `generate` counts by.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce, wraps
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pumer.backbones.grids import Grids, Kind, grids_of, note, placeholders
from pumer.backbones.prefixes import sees_all
from pumer.backbones.prompt import Observed, Prompt
from pumer.backbones.shortening import FORWARD, reads_images, shorten_prompts
from pumer.backbones.state import Reduction
from pumer.backbones.turns import TURN, shortened_generation
from pumer.utils.errors import InputError

LABELS = "pumer_labels"
"""By this name a forward hands its labels on to the model of images and text."""
OBSERVED = "pumer"
"""Name of the attention function that hands out queries and keys and then calls the model's own one."""


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
        reducing = any(place == "decoder" for place, _ in self.pumer_reduction.reducers)
        recorded = ids if shortening is not None and self.pumer_reduction.recorder is not None else None
        if reducing or recorded is not None:
            image = partial(self._image, ids, kwargs.get("inputs_embeds"))
            cells = partial(self._cells, {**kwargs, "input_ids": ids})
            prompt = Prompt(self.pumer_reduction, image, cells, labels)
            if reducing:
                kwargs["pumer"] = prompt
            elif recorded is not None:  # and no layer reduces
                mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
                prompt.open(self.config.get_text_config(), recorded, mask, cache)
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
        ids = sorted(placeholders(self.config).values())
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
        if pumer is not None and sees_all(self.config, states, attention_mask, past_key_values):
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
