"""Tokens per layer and multiply-accumulates (MACs, see `pumer.profiling.macs`) of a model, without running it.

A copy of the model runs on torch's meta device: shapes without memory or arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pumer.backbones import roots
from pumer.backbones.image_size import set_image_size
from pumer.backbones.state import switched
from pumer.patching import disabled, patch, reductions, unwrapped
from pumer.profiling import named_models
from pumer.profiling.inputs import inputs_for
from pumer.profiling.macs import GIGA, MacCounter
from pumer.profiling.meta import on_meta
from pumer.profiling.prompt_planning import PromptPlan, plan_prompt
from pumer.profiling.prompts import is_generative, prompt_size
from pumer.reducers import reduction_from
from pumer.reducers.base import Place
from pumer.settings.plan import PlanConfig
from pumer.tokens import Decision, Tokens
from pumer.utils.errors import InputError
from pumer.utils.limits import check_tokens

EMBEDDING, HEAD = "embedding", "head"


@dataclass(frozen=True)
class LayerPlan:
    """One layer, counted from 0, of the stack that is reduced; of two images per example, the sum over both.

    Text tokens (slots of the buffer) and image tokens ([CLS] counted) are those before it and, ``_out``, after it;
    ``macs`` are those of the layer and of its reduction. The ``stack`` is "vision" or "fusion" (the cross-modal
    layers).
    """

    stack: str
    layer: int
    text_tokens: int
    image_tokens: int
    text_tokens_out: int
    image_tokens_out: int
    macs: int

    @property
    def short_name(self) -> str:
        """The layer for a table: "3", in a vision encoder "v3"."""
        return f"{self.layer}" if self.stack == "fusion" else f"{self.stack[0]}{self.layer}"


@dataclass(frozen=True)
class Plan:
    """What one example costs. Print it for a table.

    Attributes:
        image_size: Height and width in pixels.
        text_length: Words of the text, special tokens counted.
        layers: One row per layer.
        embedding_macs: MACs before the first layer.
        head_macs: MACs after the last layer.
        macs_unreduced: All MACs of the same model without its reduction.
    """

    image_size: tuple[int, int]
    text_length: int
    layers: tuple[LayerPlan, ...]
    embedding_macs: int
    head_macs: int
    macs_unreduced: int

    @property
    def macs(self) -> int:
        """All MACs of one example."""
        return self.embedding_macs + sum(row.macs for row in self.layers) + self.head_macs

    @property
    def ideal_speedup(self) -> float:
        """How many times fewer MACs than unreduced: the speed-up if time followed MACs."""
        return self.macs_unreduced / self.macs

    def __str__(self) -> str:
        height, width = self.image_size
        lines = [
            f"{height} x {width} pixels, {self.text_length} words: {self.macs / GIGA:.3f} G MACs, unreduced "
            f"{self.macs_unreduced / GIGA:.3f} G, ideal speed-up {self.ideal_speedup:.2f}x",
            "",
            f"{'layer':>9}  {'text':>12}  {'image':>12}  {'G MACs':>8}",
            f"{'embedding':>9}  {'':>12}  {'':>12}  {self.embedding_macs / GIGA:>8.3f}",
        ]
        together = False
        for row in self.layers:
            text, image = _change(row.text_tokens, row.text_tokens_out), _change(row.image_tokens, row.image_tokens_out)
            if row.stack == "fusion" and not row.text_tokens_out:  # words merged with patches
                together = True
                text = f"{row.text_tokens} -> image" if row.text_tokens else "in image"
                image = _change(row.text_tokens + row.image_tokens, row.image_tokens_out)
            lines.append(f"{row.short_name:>9}  {text:>12}  {image:>12}  {row.macs / GIGA:>8.3f}")
        lines.append(f"{'head':>9}  {'':>12}  {'':>12}  {self.head_macs / GIGA:>8.3f}")
        if together:
            lines += ["", "Words and patches merge with each other: from there on both count as image tokens."]
        return "\n".join(lines)


def _change(before: int, after: int) -> str:
    return str(before) if before == after else f"{before} -> {after}"


def plan(model: nn.Module, image_size: int | tuple[int, int] | None = None, text_length: int = 32) -> Plan:
    """Count tokens and MACs of one example, without running the model and without touching it.

    The image fills its buffer and the text has no padding. A model that is not patched counts as if patched with
    `pumer.NoReduction`, whose MACs are those of transformers' own forward. For models that generate: `plan_prompt`.

    Args:
        model: A transformers model of a supported family, on any device.
        image_size: Height and width in pixels, or one number for both; None for the model's own.
        text_length: Words of the text, special tokens counted.

    Raises:
        InputError: If the model cannot be patched, generates, or does not take such an input.

    Example:
        ``print(pumer.plan(model, image_size=384, text_length=32))``
    """
    if is_generative(unwrapped(model)):
        raise InputError(f"{type(model).__name__} generates; call pumer.plan_prompt(model, text_tokens, image_tokens)")
    meta: Any = on_meta(model)
    own = int(meta.config.image_size) if image_size is None else image_size
    size = (own, own) if isinstance(own, int) else own
    check_tokens(max(size), int(meta.config.patch_size))
    for root, family in roots(meta):
        if family.set_image_size is not None and size[0] == size[1]:
            family.set_image_size(root, size[0])
    _accept_whole_image(meta, size)
    inputs = inputs_for(meta, size, text_length)
    watch = _watch(meta, inputs)
    macs = watch.counter.macs
    unreduced = macs.total()
    if any(state.config.places() for state in reductions(meta)):
        with disabled(meta):
            unreduced = _watch(meta, inputs).counter.macs.total()
    rows = (LayerPlan(*place, *before, *after, macs[place]) for place, (before, after) in watch.seen.items())
    return Plan(size, text_length, tuple(rows), macs[EMBEDDING], macs[HEAD], unreduced)


def _accept_whole_image(meta: Any, size: tuple[int, int]) -> None:
    """Check what the forward would check on data: that the image fits a bounded buffer."""
    patches = (size[0] // meta.config.patch_size) * (size[1] // meta.config.patch_size)
    for state in reductions(meta):
        most = state.config.max_image_tokens
        if most is not None and patches > most:
            raise InputError(f"the image has {patches} patches but max_image_tokens is {most}; raise it or resize")
        state.config = replace(state.config, max_image_tokens=None)


@dataclass
class _Watch:
    """Notes the tokens that enter and leave each layer; a `pumer.backbones.state.Recorder`."""

    counter: MacCounter = field(default_factory=lambda: MacCounter(EMBEDDING))
    tokens: tuple[int, int] = (0, 0)
    seen: dict[Place, tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=dict)

    def begin(self, tokens: Tokens, cell: Tensor, history: Sequence[tuple[Place, Decision]]) -> None:
        self.tokens = tokens.slots

    def step(self, place: Place, decision: Decision, tokens: Tokens) -> None:
        self.seen[place] = (self.tokens, tokens.slots)
        self.tokens = tokens.slots

    def enter(self, place: Place, states: Tensor) -> None:
        if place[0] == "vision":  # there is no text yet
            self.tokens = (0, states.shape[1])
        self.counter.section = place
        self.seen[place] = (self.tokens, self.tokens)


def _watch(meta: nn.Module, inputs: dict[str, Tensor]) -> _Watch:
    """Run a meta model once, whose hooks report which part of it is running."""
    watch, handles = _Watch(), []
    counter = watch.counter
    for root, family in roots(meta):
        handles.append(root.register_forward_pre_hook(lambda *_: setattr(counter, "section", EMBEDDING)))
        for stack, layers in family.layers(root).items():
            for index, layer in enumerate(layers):
                enter = lambda _, args, place=(stack, index): watch.enter(place, args[0])  # noqa: E731
                handles.append(layer.register_forward_pre_hook(enter))
        for stack, encoder in family.encoders(root).items():
            after = HEAD if stack == "fusion" else EMBEDDING
            leave = lambda *_, after=after: setattr(counter, "section", after)  # noqa: E731
            handles.append(encoder.register_forward_hook(leave))
    try:
        with switched(reductions(meta), "recording", watch), torch.no_grad(), counter:
            meta(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return watch


def run(config: PlanConfig) -> Plan | PromptPlan:
    """Plan a checkpoint or a preset."""
    generative = named_models.generates(config.model)
    config.check_kind(generative)
    with torch.device("meta"):
        model = named_models.skeleton(config.model)
    set_image_size(config.image_size, model)
    if config.reduction is not None:
        patch(model, reduction_from(config.reduction))
    if generative:
        return plan_prompt(model, *prompt_size(model.config, config.text_tokens, config.image_tokens), config.dtype)
    if config.dtype is not None:
        raise InputError(f"dtype={config.dtype} is not for a model that does not generate; leave it out")
    size = config.image_size or named_models.default_image_size(config.model, model)
    return plan(model, size, config.text_length or named_models.default_text_length(config.model, model))
