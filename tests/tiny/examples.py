"""Example configs of every method, with what is promised for each."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from pumer import (
    AttentionReceivedConfig,
    ClsPruningConfig,
    DynamicViTConfig,
    EViTConfig,
    L2NormConfig,
    NoReduction,
    PoolingConfig,
    PuMerConfig,
    RandomPruningConfig,
    ReleasedPuMerConfig,
    Step,
    ToMeConfig,
)
from pumer.reducers import METHODS, ReductionConfig
from pumer.reducers.layered import LayeredConfig


@dataclass(frozen=True)
class Example:
    """A config of a method, and what is promised for it.

    Attributes:
        config: Reduces in layers 0 to 2 at most; `Tiny.fit` makes them layers of a backbone.
        off: The same method with nothing to remove; equal to the unpatched model. None if it cannot be.
        any_batch: Law 1 holds (the released code's counts depend on padding).
        fused: Attention is torch's own (the released code's softmax is not that of any kernel).
        sizes: Sizes add up to real tokens and weigh the averages.
        apart: Text and image never mix.
        cls_stays: [CLS] is neither pruned nor merged, and order is kept.
    """

    config: ReductionConfig
    off: ReductionConfig | None = None
    any_batch: bool = True
    fused: bool = True
    sizes: bool = True
    apart: bool = True
    cls_stays: bool = True


def _pumer(**settings: float) -> Example:
    return Example(PuMerConfig(layers=(0, 2), **settings), off=PuMerConfig(layers=(0, 2)))


def _layered(method: type[LayeredConfig], **settings: float | str) -> Example:
    off = {name: value for name, value in settings.items() if name in ("stack", "keep")}
    return Example(method(layers=(0, 2), **settings), off=method(layers=(0, 2), **off), sizes=method is not EViTConfig)


def _tome(**settings: float) -> Example:
    return Example(ToMeConfig(layers=(0, 1, 2), **settings), off=ToMeConfig(layers=(0,)), apart=False, cls_stays=False)


EXAMPLES: dict[str, tuple[Example, ...]] = {
    "none": (Example(NoReduction(), off=NoReduction()),),
    "pumer": (
        _pumer(prune_ratio=0.1, merge_ratio=0.3, text_merge_ratio=0.2),
        _pumer(prune_ratio=0.4),
        _pumer(merge_ratio=0.45),
        _pumer(text_merge_ratio=0.4),
        _pumer(prune_ratio=0.6, merge_ratio=0.9, text_merge_ratio=0.9),
        Example(
            PuMerConfig(
                schedule=(
                    Step(layer=0, merge_ratio=0.4),
                    Step(layer=1, prune_ratio=0.3, text_merge_ratio=0.3),
                    Step(layer=2, prune_ratio=0.2, merge_ratio=0.2),
                ),
                proportional_attention=False,
            ),
            off=PuMerConfig(schedule=(Step(layer=1),)),
        ),
        Example(
            PuMerConfig(
                schedule=(
                    Step(stack="vision", layer=0, merge_ratio=0.2),
                    Step(stack="vision", layer=2, merge_ratio=0.3),
                    Step(layer=0, prune_ratio=0.2, merge_ratio=0.2, text_merge_ratio=0.2),
                )
            ),
            off=PuMerConfig(schedule=(Step(stack="vision", layer=0),)),
        ),
    ),
    "pumer-released": (
        Example(
            ReleasedPuMerConfig(layers=(0, 2), prune_ratio=0.1, merge_ratio=0.3, text_merge_ratio=0.2),
            any_batch=False,
            fused=False,
            sizes=False,
            cls_stays=False,
        ),
        Example(
            ReleasedPuMerConfig(layers=(1,), prune_ratio=0.5, merge_ratio=0.5, similarity="first_head"),
            any_batch=False,
            fused=False,
            sizes=False,
            cls_stays=False,
        ),
    ),
    "tome": (
        _tome(merge_count=3),
        _tome(merge_count=18, proportional_attention=False),
        Example(ToMeConfig(stack="vision", layers=(0, 2), merge_count=4), off=ToMeConfig(stack="vision", layers=(0,))),
    ),
    "dynamicvit": (
        _layered(DynamicViTConfig, prune_ratio=0.3),
        _layered(DynamicViTConfig, prune_ratio=0.6, stack="vision"),
    ),
    "evit": (_layered(EViTConfig, prune_ratio=0.3), _layered(EViTConfig, prune_ratio=0.95, stack="vision")),
    "cls": (_layered(ClsPruningConfig, prune_ratio=0.3), _layered(ClsPruningConfig, prune_ratio=0.5, stack="vision")),
    "attention-received": (
        _layered(AttentionReceivedConfig, prune_ratio=0.3),
        _layered(AttentionReceivedConfig, prune_ratio=0.6, stack="vision"),
    ),
    "l2norm": (
        _layered(L2NormConfig, prune_ratio=0.3),
        _layered(L2NormConfig, prune_ratio=0.6, keep="largest", stack="vision"),
    ),
    "random": (_layered(RandomPruningConfig, prune_ratio=0.3), _layered(RandomPruningConfig, prune_ratio=0.6, seed=3)),
    "pooling": (_layered(PoolingConfig, merge_ratio=0.3), _layered(PoolingConfig, merge_ratio=0.9)),
}


def moved(config: ReductionConfig, where: Callable[[str, int], int], vision: bool = True) -> ReductionConfig:
    """The config with its layers elsewhere, and without the steps of a vision encoder where there is none.

    Args:
        config: any.
        where: from stack and layer to another layer of the stack; what meets in one layer is done there once.
        vision: keep the steps of a vision encoder.
    """
    settings = {field.name for field in fields(config)}
    if "layers" in settings:
        stack = getattr(config, "stack", "fusion")
        return replace(config, layers=tuple(dict.fromkeys(where(stack, layer) for layer in config.layers)))
    if "schedule" not in settings:
        return config
    kept = [step for step in config.schedule if vision or step.stack == "fusion"]
    steps = {(step.stack, where(step.stack, step.layer)): step for step in reversed(kept)}
    schedule = tuple(replace(step, layer=layer) for (_, layer), step in sorted(steps.items()))
    return type(config)(**{name: getattr(config, name) for name in settings} | {"schedule": schedule})


def in_vision(example: Example) -> bool:
    """Whether it reduces in a vision encoder."""
    return any(stack == "vision" for stack, _ in example.config.places())


def label(value: object) -> str | None:
    """How pytest calls a parameter: the settings that are not zero."""
    if not isinstance(value, Example):
        return None
    if in_vision(value):
        return f"{value.config.method}-vision"
    steps = getattr(value.config, "schedule", None) or [value.config]
    ratios = {name: r for step in steps for name, r in vars(step).items() if name.endswith("_ratio") and r}
    return "-".join([value.config.method, *(f"{name.removesuffix('_ratio')}{r}" for name, r in ratios.items())])


WITH_HEADS = tuple(name for name, method in METHODS.items() if "fusion" in method.stacks)
"""The methods for models that answer by a head; the others, in `tiny.decoder_examples`, are for generative ones."""
