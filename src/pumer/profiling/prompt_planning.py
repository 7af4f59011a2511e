"""What a prompt costs in the decoder of a generative model: tokens, MACs and cache, layer by layer, without a run.

A copy of the decoder runs on torch's meta device: shapes without memory or arithmetic.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from pumer.backbones import families_in
from pumer.backbones.decoder import TextModel
from pumer.backbones.decoders import DecoderFamily
from pumer.backbones.prompt import Prompt
from pumer.backbones.state import Reduction, switched
from pumer.patching import disabled, reductions
from pumer.profiling.macs import GIGA, MacCounter
from pumer.profiling.meta import on_meta
from pumer.reducers.base import Place
from pumer.reducers.shortening.base import RatioShorteningConfig, ShorteningConfig
from pumer.reducers.shortening.evs import EVSConfig
from pumer.settings.common import DType
from pumer.tokens import Decision, Tokens
from pumer.utils.errors import InputError

LINEAR, ATTENTION, REDUCTION, HEAD = "linear", "attention", "reduction", "head"
MIB = 2**20


@dataclass(frozen=True)
class PromptLayer:
    """One layer of a decoder, counted from 0.

    Attributes:
        layer: Its number.
        text_tokens: Text tokens that enter it.
        image_tokens: Image tokens that enter it.
        linear_macs: MACs of its projections and its feed-forward part.
        attention_macs: Those of queries with keys and of probabilities with values, of all pairs of tokens.
        reduction_macs: Those of the reduction after it.
        cache_bytes: What it keeps of the prompt for generation.
    """

    layer: int
    text_tokens: int
    image_tokens: int
    linear_macs: int
    attention_macs: int
    reduction_macs: int
    cache_bytes: int

    @property
    def macs(self) -> int:
        """All MACs."""
        return self.linear_macs + self.attention_macs + self.reduction_macs


@dataclass(frozen=True)
class PromptPlan:
    """What one prompt costs in the decoder, the vision encoder apart. Print it for a table.

    Where prompts are shortened before the decoder, fewer tokens enter the first layer; choosing them is not counted.

    Attributes:
        text_tokens: Text tokens of the prompt.
        image_tokens: Image tokens of the prompt.
        dtype: Number format of the cache.
        layers: One row per layer.
        unreduced: The same without the reduction.
        head_macs: MACs of the vocabulary's logits, for the last token.
    """

    text_tokens: int
    image_tokens: int
    dtype: str
    layers: tuple[PromptLayer, ...]
    unreduced: tuple[PromptLayer, ...]
    head_macs: int

    @property
    def macs(self) -> int:
        """All MACs until the first token is known."""
        return sum(row.macs for row in self.layers) + self.head_macs

    @property
    def macs_unreduced(self) -> int:
        """The same without the reduction."""
        return sum(row.macs for row in self.unreduced) + self.head_macs

    @property
    def ideal_speedup(self) -> float:
        """How many times fewer MACs than unreduced: the speed-up if time followed MACs."""
        return self.macs_unreduced / self.macs

    @property
    def cache_bytes(self) -> int:
        """Keys and values of all layers."""
        return sum(row.cache_bytes for row in self.layers)

    @property
    def cache_bytes_unreduced(self) -> int:
        """The same without the reduction."""
        return sum(row.cache_bytes for row in self.unreduced)

    def __str__(self) -> str:
        before = self.cache_bytes_unreduced
        lines = [
            f"{self.text_tokens} text and {self.image_tokens} image tokens: {self.macs / GIGA:.3f} G MACs, unreduced "
            f"{self.macs_unreduced / GIGA:.3f} G, ideal speed-up {self.ideal_speedup:.2f}x",
            f"cache in {self.dtype}: {self.cache_bytes / MIB:.1f} MiB, unreduced {before / MIB:.1f} MiB",
            *self._shortened(),
            "",
            f"{'':>5}  {'tokens':>11}  {'G MACs':>35}  {'cache, MiB':>19}",
            f"{'layer':>5}  {'text':>4}  {'image':>5}  {'linear':>8} {'attention':>9} {'all':>7} {'unreduced':>9}"
            f"  {'':>8} {'unreduced':>10}",
        ]
        for row, whole in zip(self.layers, self.unreduced, strict=True):
            macs = [part / GIGA for part in (row.linear_macs, row.attention_macs, row.macs, whole.macs)]
            lines.append(
                f"{row.layer:>5}  {row.text_tokens:>4}  {row.image_tokens:>5}  {macs[0]:>8.3f} {macs[1]:>9.3f} "
                f"{macs[2]:>7.3f} {macs[3]:>9.3f}  {row.cache_bytes / MIB:>8.2f} {whole.cache_bytes / MIB:>10.2f}"
            )
        lines.append(f"{'head':>5}  {'':>4}  {'':>5}  {self.head_macs / GIGA:>8.3f}")
        return "\n".join(lines)

    def _shortened(self) -> list[str]:
        enter = self.layers[0].image_tokens
        return [] if enter == self.image_tokens else [f"{enter} image tokens enter; choosing them is not counted"]


def plan_prompt(
    model: nn.Module, text_tokens: int = 64, image_tokens: int | Sequence[int] = 576, dtype: DType | None = None
) -> PromptPlan:
    """Count tokens, MACs and cache bytes of one prompt in the decoder, without running the model or touching it.

    The image's tokens are those that the vision encoder hands on; the encoder itself is not counted.

    Args:
        model: A generative model of a supported family, on any device, patched or not.
        text_tokens: Text tokens of the prompt, special ones counted.
        image_tokens: Its image tokens; of several images, those of each, as each is shortened by itself.
        dtype: Number format of the cache; None for the model's own.

    Raises:
        InputError: If the model does not generate, or its method keeps a number of tokens that depends on the prompt.

    Example:
        ``print(pumer.plan_prompt(model, text_tokens=64, image_tokens=576))``
    """
    images = [image_tokens] if isinstance(image_tokens, int) else list(image_tokens)
    for name, tokens in (("text_tokens", text_tokens), *(("image_tokens", tokens) for tokens in images or [0])):
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise InputError(f"{name} is {tokens!r}; give an integer from 1 on")
    meta: Any = on_meta(model)
    root, text = decoder_of(meta)
    if dtype is not None:
        meta.to(getattr(torch, dtype))
    text.set_attn_implementation("sdpa")
    rows = _watched(root, text, (text_tokens, _entering(root.pumer_reduction.shortening, images)))
    with disabled(meta):
        unreduced = _watched(root, text, (text_tokens, sum(images)))
    number = str(next(text.parameters()).dtype).removeprefix("torch.")
    return PromptPlan(text_tokens, sum(images), number, rows, unreduced, _head_macs(meta, text))


def _entering(method: ShorteningConfig | None, images: Sequence[int]) -> int:
    """Image tokens that enter the first layer."""
    if method is None:
        return sum(images)
    if not isinstance(method, RatioShorteningConfig) or isinstance(method, EVSConfig):  # which keeps first frames
        raise InputError(f"how many tokens method '{method.method}' keeps depends on the images; it has no plan")
    return sum(map(method.kept, images))


def decoder_of(model: nn.Module) -> tuple[Any, Any]:
    """The model of images and text in a generative model, and its text model.

    Raises:
        InputError: If there is none.
    """
    for root, family in families_in(model):
        if isinstance(family, DecoderFamily):
            return root, getattr(root, family.decoder)
    raise InputError(f"{type(model).__name__} does not generate; give a model such as LLaVA, or call pumer.plan")


class _Known(Prompt):
    """A prompt of which only the lengths are known."""

    def __init__(self, reduction: Reduction, slots: tuple[int, int]) -> None:
        image = torch.zeros(1, sum(slots), dtype=torch.bool, device="meta")
        super().__init__(reduction, lambda: image, cast(Any, lambda _: None))
        self.slots = slots

    def _lengths(self, image: Tensor, real: Tensor | None) -> tuple[tuple[int, int], ...]:
        return (self.slots,) * len(image)


class _Watch:
    """Notes the tokens that enter each layer; a `pumer.backbones.state.Recorder`."""

    def __init__(self, slots: tuple[int, int]) -> None:
        self.counter = MacCounter()
        self.tokens = slots
        self.entered: list[tuple[int, int]] = []

    def begin(self, tokens: Tokens, cell: Any, history: Sequence[tuple[Place, Decision]]) -> None:
        """Nothing is known yet that was not before."""

    def step(self, place: Place, decision: Decision, tokens: Tokens) -> None:
        """A layer has reduced."""
        self.tokens = tokens.slots

    def enter(self, *_: Any) -> None:
        """A layer begins."""
        self.entered.append(self.tokens)

    def part(self, name: str) -> Any:
        """A hook after which what runs is counted as this part of the layer that has begun last."""
        return lambda *_: setattr(self.counter, "section", (len(self.entered) - 1, name))


def _watched(root: Any, text: Any, slots: tuple[int, int]) -> tuple[PromptLayer, ...]:
    """Run a decoder on the meta device once, whose hooks report which part of it is running."""
    watch, cache = _Watch(slots), DynamicCache(config=text.config)
    weight = next(text.parameters())
    states = torch.empty(1, sum(slots), text.config.hidden_size, dtype=weight.dtype, device="meta")
    prompt = {"pumer": _Known(root.pumer_reduction, slots)} if isinstance(text, TextModel) else {}
    with ExitStack() as hooks:
        for layer in text.layers:
            handles = [layer.register_forward_pre_hook(watch.enter)]
            handles += [layer.self_attn.register_forward_pre_hook(watch.part(ATTENTION))]
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    handles.append(module.register_forward_pre_hook(watch.part(LINEAR)))
                    handles.append(module.register_forward_hook(watch.part(ATTENTION)))
            handles.append(layer.mlp.register_forward_hook(watch.part(REDUCTION)))
            for handle in handles:
                hooks.callback(handle.remove)
        hooks.enter_context(switched(reductions(root), "recording", watch))
        hooks.enter_context(torch.no_grad())
        hooks.enter_context(watch.counter)
        try:
            text(inputs_embeds=states, past_key_values=cache, use_cache=True, **prompt)
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):
                raise
            method = root.pumer_reduction.config.method
            raise InputError(
                f"how many tokens method '{method}' keeps depends on the prompt; it has no plan"
            ) from error
    macs = watch.counter.macs
    return tuple(
        PromptLayer(
            number,
            *tokens,
            macs[number, LINEAR],
            macs[number, ATTENTION],
            macs[number, REDUCTION],
            cache_bytes(cache, number),
        )
        for number, tokens in enumerate(watch.entered)
    )


def cache_bytes(cache: Any, layer: int) -> int:
    """Bytes of the keys and values of a layer."""
    part = cache.layers[layer]
    return sum(int(x.numel() * x.element_size()) for x in (part.keys, part.values))


def _head_macs(meta: Any, text: Any) -> int:
    head = getattr(meta, "lm_head", None)
    if head is None:
        return 0
    with torch.no_grad(), MacCounter(HEAD) as counter:
        head(torch.empty(1, 1, text.config.hidden_size, dtype=next(text.parameters()).dtype, device="meta"))
    return int(counter.macs[HEAD])
