"""What a generative model takes to answer: time to the first token, time per further token, and cache."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from pumer.backbones.decoder import TextModel
from pumer.backbones.prompt import Prompt
from pumer.backbones.shortening import ShortPrompts, shorten_prompts
from pumer.profiling.prompt_planning import cache_bytes, decoder_of
from pumer.profiling.timing import compare, spread, synchronise
from pumer.reducers.shortening.base import Choice, ImageTokens, ShorteningConfig

FIRST_TOKEN, AFTER_ENCODER, DECODER, DECODE = "first_token", "after_encoder", "decoder", "decode"
"""What is timed: a prompt until its first token is known; the same from the encoded image on, with the tokens that are
chosen where prompts are shortened; the decoder's layers alone; one further token."""
STAGES = (FIRST_TOKEN, AFTER_ENCODER, DECODER, DECODE)
CHOOSING = "choosing"
"""What is timed besides, of models that shorten prompts: choosing among the tokens of all images of the batch."""
_PIXELS = ("pixel_values", "pixel_attention_mask")


def time_stages(
    models: Mapping[str, PreTrainedModel],
    inputs: dict[str, Tensor],
    new_tokens: int,
    pairs: int,
    seconds: float = 0.0,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Time models that share their weights, in interleaved rounds, against the first of them.

    Args:
        models: By name; those that are reduced are patched.
        inputs: A batch of prompts.
        new_tokens: Further tokens that a round generates.
        pairs: Least number of rounds of a stage.
        seconds: Least time of a stage.
        tick: Called after every round.

    Returns:
        By `STAGES`, the models' ``seconds`` and ``speedup`` as from `compare`; a further token's are those of one
        token. ``choosing`` (see `CHOOSING`) by name: ``seconds``. And ``cache_bytes`` by name: those after the prompt.
    """
    batch, first = len(inputs["input_ids"]), next(iter(models.values()))
    with torch.inference_mode():
        whole, captured = _encoded(first, inputs), _captured(first, inputs)
        short = {name: _short(model, inputs) for name, model in models.items()}
        decoders, encoded = {}, {}
        for name, model in models.items():
            each = short[name]
            encoded[name] = whole if each is None else each.inputs
            seen = captured if each is None else _captured(first, each.inputs)
            decoders[name] = _Decoder(model, inputs["input_ids"] if each is None else each.ids, seen)
        decoding = {name: Decoding(model, inputs, new_tokens) for name, model in models.items()}
    calls: dict[str, dict[str, Any]] = {
        FIRST_TOKEN: {name: Prefill(model) for name, model in models.items()},
        AFTER_ENCODER: {name: Prefill(model) for name, model in models.items()},
        DECODER: decoders,
        DECODE: decoding,
    }
    found: dict[str, Any] = {}
    for stage in STAGES:
        given = encoded if stage == AFTER_ENCODER else dict.fromkeys(models, inputs)
        makers = {name: partial(_given, each) for name, each in given.items()}
        taken = compare(calls[stage], makers, [batch], pairs, seconds, tick=tick)["points"][0]
        repeats = new_tokens if stage == DECODE else 1
        found[stage] = {name: _one(timed, repeats) for name, timed in taken["models"].items()}
    found[CHOOSING] = {name: _choosing(models[name], inputs, pairs) for name, each in short.items() if each is not None}
    return found | {"cache_bytes": {name: each.bytes for name, each in decoding.items()}}


def _given(inputs: dict[str, Any], batch: int) -> dict[str, Any]:
    return inputs


def _one(timed: Mapping[str, Any], repeats: int) -> dict[str, Any]:
    return {
        "seconds": {name: value / repeats for name, value in timed["seconds"].items()},
        "speedup": timed["speedup"],
    }


@dataclass(frozen=True, eq=False)
class Prefill:
    """A prompt until its first token is known."""

    model: PreTrainedModel

    def __call__(self, **inputs: Any) -> Any:
        """The output for a batch of prompts."""
        return self.model(**inputs, use_cache=True, logits_to_keep=1)


class _Decoder:
    """The layers of a decoder alone, on a prompt whose image is encoded."""

    def __init__(self, model: PreTrainedModel, ids: Tensor, captured: Mapping[str, Any]) -> None:
        self.root, self.text = decoder_of(model)
        self.image = ids == model.config.image_token_id
        self.captured = captured

    def __call__(self, **_: Any) -> Any:
        prompt: dict[str, Any] = {}
        if isinstance(self.text, TextModel):
            prompt["pumer"] = Prompt(self.root.pumer_reduction, lambda: self.image, cast(Any, lambda _: None))
        cache = DynamicCache(config=self.text.config)
        return self.text(**self.captured, **prompt, past_key_values=cache, use_cache=True)


class Decoding:
    """Further tokens after a prompt; every call generates them anew, and leaves the cache as it was.

    Attributes:
        bytes: Of the cache after the prompt.
    """

    def __init__(self, model: PreTrainedModel, inputs: dict[str, Tensor], new_tokens: int) -> None:
        """Run the prompt."""
        self.model, self.new_tokens, self.start = model, new_tokens, inputs["input_ids"].shape[1]
        short = _short(model, inputs)
        given = inputs if short is None else short.inputs
        output = Prefill(model)(**given)
        self.cache, self.token = output.past_key_values, output.logits[:, -1:].argmax(dim=-1)
        mask = given["attention_mask"]
        self.mask = torch.cat([mask, mask.new_ones(len(mask), new_tokens)], dim=1)
        self.lengths = [layer.keys.shape[2] for layer in self.cache.layers]
        self.bytes = sum(cache_bytes(self.cache, layer) for layer in range(len(self.lengths)))

    def __call__(self, **_: Any) -> None:
        """Generate."""
        token, seen = self.token, self.mask.shape[1] - self.new_tokens
        for step in range(self.new_tokens):
            output = self.model(
                input_ids=token,
                attention_mask=self.mask[:, : seen + step + 1],
                position_ids=torch.full_like(token, self.start + step),
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
            token = output.logits[:, -1:].argmax(dim=-1)
        for layer, length in zip(self.cache.layers, self.lengths, strict=True):
            layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]


def _short(model: PreTrainedModel, inputs: dict[str, Tensor]) -> ShortPrompts | None:
    """The prompts as they enter the decoder of a model that shortens them."""
    root, _ = decoder_of(model)
    state = root.__dict__.get("pumer_reduction")
    return None if state is None or state.shortening is None else shorten_prompts(root, inputs, state.shortening)


@dataclass
class _Timed:
    """A method that shortens prompts, and the seconds that its choices took."""

    method: ShorteningConfig
    seconds: float = 0.0

    def choose(self, image: ImageTokens) -> Choice:
        """As the method does, with what it asks the encoder for."""
        synchronise(image.features.device)
        start = time.perf_counter()
        choice = self.method.choose(image)
        synchronise(image.features.device)
        self.seconds += time.perf_counter() - start
        return choice


def _choosing(model: PreTrainedModel, inputs: dict[str, Tensor], rounds: int) -> dict[str, Any]:
    """Seconds that choices take, in runs of the encoder."""
    root, _ = decoder_of(model)
    taken = []
    with torch.inference_mode():
        for _ in range(rounds + 1):
            watch = _Timed(root.pumer_reduction.shortening)
            shorten_prompts(root, inputs, cast(Any, watch))
            taken.append(watch.seconds)
    return {"seconds": spread(taken[1:])}  # the first warms up


def _encoded(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """Inputs with what the vision encoder makes of the images, in place of the images."""
    root, _ = decoder_of(model)
    names = signature(root.get_image_features).parameters
    features = root.get_image_features(**{n: x for n, x in inputs.items() if n in names}, return_dict=True)
    return {n: x for n, x in inputs.items() if n not in _PIXELS} | {"mm_encoder_outputs": {"image": features}}


def _captured(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """What the decoder of an unreduced model is called with by name."""
    seen: dict[str, Any] = {}
    handle = decoder_of(model)[1].register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    try:
        Prefill(model)(**inputs)
    finally:
        handle.remove()
    own = ("pumer", "past_key_values", "use_cache")
    return {name: value for name, value in seen.items() if name not in own}
