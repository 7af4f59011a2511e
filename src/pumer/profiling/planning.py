"""Tokens per layer and multiply-accumulates (MACs) of a model before any run.

What is counted: see `pumer.profiling.macs`; the reduction's own small products are included. The model runs on torch's
meta device: shapes only, no arithmetic.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from pumer.backbones import BACKBONES
from pumer.backbones.base import switched
from pumer.backbones.image_size import set_image_size
from pumer.models.meter import MeterModel
from pumer.patching import disabled, patch, reductions
from pumer.profiling import named_models
from pumer.profiling.macs import MacCounter
from pumer.profiling.meta import meta_inputs, on_meta
from pumer.reducers import reduction_from
from pumer.reducers.base import Place
from pumer.settings.plan import PlanConfig
from pumer.tokens import Decision, Tokens
from pumer.utils.errors import InputError
from pumer.utils.limits import check_tokens

GIGA = 1e9
EMBEDDING, HEAD = "embedding", "head"


@dataclass(frozen=True)
class LayerPlan:
    """One layer of the stack that is reduced; a model that sees two images per example sums over both.

    Attributes:
        stack: "vision" for a vision encoder, "fusion" for the cross-modal layers.
        layer: 0-based layer of the stack.
        text_tokens: Text tokens that enter it (slots of the buffer).
        image_tokens: Image tokens that enter it, [CLS] counted.
        text_tokens_out: Text tokens that leave it.
        image_tokens_out: Image tokens that leave it.
        macs: Multiply-accumulates of the layer and of its reduction.
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
        embedding_macs: Multiply-accumulates before the first layer.
        head_macs: Multiply-accumulates after the last layer.
        macs_unreduced: All multiply-accumulates of the same model without its reduction.
    """

    image_size: tuple[int, int]
    text_length: int
    layers: tuple[LayerPlan, ...]
    embedding_macs: int
    head_macs: int
    macs_unreduced: int

    @property
    def macs(self) -> int:
        """All multiply-accumulates of one example."""
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
        for row in self.layers:
            text, image = _change(row.text_tokens, row.text_tokens_out), _change(row.image_tokens, row.image_tokens_out)
            lines.append(f"{row.short_name:>9}  {text:>12}  {image:>12}  {row.macs / GIGA:>8.3f}")
        lines.append(f"{'head':>9}  {'':>12}  {'':>12}  {self.head_macs / GIGA:>8.3f}")
        return "\n".join(lines)


def _change(before: int, after: int) -> str:
    return str(before) if before == after else f"{before} -> {after}"


def plan(model: nn.Module, image_size: int | tuple[int, int] | None = None, text_length: int = 32) -> Plan:
    """Count tokens and MACs of one example, without running the model and without touching it.

    The image fills its buffer and the text has no padding. A model that is not patched counts as if patched with
    `pumer.NoReduction`, whose MACs are those of transformers' own forward.

    Args:
        model: A transformers model of a supported family, on any device.
        image_size: Height and width in pixels, or one number for both; None for the model's own.
        text_length: Words of the text, special tokens counted.

    Returns:
        The plan.

    Raises:
        InputError: If the model cannot be patched, or does not take such an input.

    Example:
        ``print(pumer.plan(model, image_size=384, text_length=32))``
    """
    meta = on_meta(model)
    own = int(meta.config.image_size) if image_size is None else image_size  # type: ignore[arg-type, union-attr]
    size = (own, own) if isinstance(own, int) else own
    check_tokens(max(size), int(meta.config.patch_size))  # type: ignore[arg-type, union-attr]
    for module in list(meta.modules()):
        if isinstance(module, MeterModel) and size[0] == size[1]:  # ViLT takes any size as it is
            module.set_image_size(size[0])
    _accept_whole_image(meta, size)
    inputs = meta_inputs(meta, size, text_length)
    watch = _watch(meta, inputs)
    with disabled(meta):
        unreduced = _watch(meta, inputs)
    return Plan(
        image_size=size,
        text_length=text_length,
        layers=tuple(watch.rows),
        embedding_macs=watch.counter.macs[EMBEDDING],
        head_macs=watch.counter.macs[HEAD],
        macs_unreduced=unreduced.counter.total,
    )


def _accept_whole_image(meta: nn.Module, size: tuple[int, int]) -> None:
    """Check by hand what the forward would check on data: that the image fits a bounded buffer."""
    patch_size = meta.config.patch_size  # type: ignore[union-attr]
    patches = (size[0] // patch_size) * (size[1] // patch_size)  # type: ignore[operator]
    for state in reductions(meta):
        most = state.config.max_image_tokens
        if most is not None and patches > most:
            raise InputError(f"the image has {patches} patches but max_image_tokens is {most}; raise it or resize")
        state.config = replace(state.config, max_image_tokens=None)


@dataclass
class _Watch:
    """Notes the tokens that enter and leave each layer; a `pumer.backbones.base.Recorder`."""

    counter: MacCounter = field(default_factory=lambda: MacCounter(EMBEDDING))
    tokens: tuple[int, int] = (0, 0)
    seen: dict[Place, tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=dict)

    def begin(self, tokens: Tokens, cell: Tensor, history: Sequence[tuple[Place, Decision]]) -> None:
        self.tokens = (tokens.text_length, tokens.mask.shape[1] - tokens.text_length)

    def step(self, place: Place, decision: Decision, tokens: Tokens) -> None:
        before = self.tokens
        self.tokens = (tokens.text_length, tokens.mask.shape[1] - tokens.text_length)
        self.seen[place] = (before, self.tokens)

    def enter(self, place: Place, states: Tensor) -> None:
        if place[0] == "vision":  # there is no text yet
            self.tokens = (0, states.shape[1])
        self.counter.section = place
        self.seen[place] = (self.tokens, self.tokens)

    @property
    def rows(self) -> Iterator[LayerPlan]:
        for place, (before, after) in self.seen.items():
            yield LayerPlan(*place, *before, *after, self.counter.macs[place])


def _watch(meta: nn.Module, inputs: dict[str, Tensor]) -> _Watch:
    """Run a meta model once."""
    watch = _Watch()
    with _hooked(meta, watch), torch.no_grad(), watch.counter:
        meta(**inputs)
    return watch


@contextmanager
def _hooked(meta: nn.Module, watch: _Watch) -> Iterator[None]:
    """Tell the watch which part of the model is running."""
    handles = []
    counter = watch.counter
    for module in meta.modules():
        for backbone in BACKBONES.values():
            if not isinstance(module, backbone.classes[backbone.root]):
                continue
            handles.append(module.register_forward_pre_hook(lambda *_: setattr(counter, "section", EMBEDDING)))
            for stack, layers in backbone.layers(module).items():
                for index, layer in enumerate(layers):
                    place = (stack, index)
                    enter = lambda _, args, place=place: watch.enter(place, args[0])  # noqa: E731
                    handles.append(layer.register_forward_pre_hook(enter))
            for stack, encoder in backbone.encoders(module).items():
                after = HEAD if stack == "fusion" else EMBEDDING
                leave = lambda *_, after=after: setattr(counter, "section", after)  # noqa: E731
                handles.append(encoder.register_forward_hook(leave))
    try:
        with switched(reductions(meta), "recording", watch):
            yield
    finally:
        for handle in handles:
            handle.remove()


def run(config: PlanConfig) -> Plan:
    """Plan a checkpoint or a preset.

    Raises:
        InputError: If there is no such model, or a setting does not fit it.
    """
    with torch.device("meta"):
        model = named_models.skeleton(config.model)
    set_image_size(config.image_size, model)
    if config.reduction is not None:
        patch(model, reduction_from(config.reduction))
    size = config.image_size or named_models.default_image_size(config.model, model)
    return plan(model, size, config.text_length or named_models.default_text_length(config.model, model))
