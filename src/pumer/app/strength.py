"""From a method and two sliders to a reduction: how many of all image tokens are pruned, and how many are merged."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from pumer.profiling.planning import plan
from pumer.reducers import METHODS, NoReduction, PuMerConfig, ReductionConfig
from pumer.reducers.pumer import PRESETS
from pumer.settings.tune import PROMPT
from pumer.tuning.space import Space
from pumer.utils.errors import InputError, unknown

MOST = 0.9
"""The largest share of the image tokens that can be asked to go."""
TEXT_MERGE_RATIO = 0.2
"""Of PuMer, in each of its layers: the paper's."""


@dataclass(frozen=True)
class Strength:
    """The reductions of a model.

    A share is of all image tokens, after the last of the layers that reduce; each of these removes as large a part of
    what enters it as the others. PuMer's layers are the paper's where it has some for the model and the task, else
    three, as far apart as these; ToMe reduces in every layer, as its paper does.

    Attributes:
        space: The layers and the methods that fit the model.
        layers: Those that reduce.
        image_tokens: That enter them, where each image has as many.
    """

    space: Space
    layers: tuple[int, ...]
    image_tokens: int

    @classmethod
    def of(cls, model: nn.Module, task: str, methods: Sequence[str]) -> "Strength":
        """The reductions of a model.

        Args:
            model: A supported one.
            task: It was trained for.
            methods: Names of methods.
        """
        space = Space.of(model, 2**20, methods)
        layers, *_ = PRESETS.get((space.family, task), ((),))
        if not layers or not set(layers) <= set(space.layers):
            places = (len(space.layers) * twelfth // 12 for twelfth in (2, 5, 8))
            layers = tuple(dict.fromkeys(space.layers[at] for at in places))
        generates = space.stack == "decoder"
        entering = () if generates else plan(model, text_length=8).layers
        return cls(space, layers, next((row.image_tokens for row in entering if row.stack == space.stack), 0))

    @property
    def methods(self) -> list[str]:
        """Their names; in a decoder none that merges a number of tokens, which a prompt may not have."""
        generates = self.space.stack == "decoder"
        return [name for name in self.space.methods if not (generates and "merge_count" in METHODS[name].amounts)]

    @staticmethod
    def amounts(method: str) -> tuple[bool, bool]:
        """Whether a method prunes, and whether it merges."""
        if method in PROMPT:
            return True, False
        names = METHODS[method].amounts
        return "prune_ratio" in names, "merge_ratio" in names or "merge_count" in names

    def config(self, method: str, prune: float, merge: float) -> ReductionConfig:
        """A reduction; amounts that a method does not have are left out."""
        if method not in self.methods:
            raise InputError(unknown("method", method, self.methods))
        prunes, merges = self.amounts(method)
        prune, merge = (x if used else 0.0 for x, used in ((prune, prunes), (merge, merges)))
        for name, x in (("pruned", prune), ("merged", merge), ("pruned and merged together", prune + merge)):
            if not 0 <= x <= MOST + 1e-9:
                raise InputError(f"{x:.0%} of the image tokens {name} is not possible; choose 0% to {MOST:.0%}")
        if not prune + merge:
            return NoReduction()
        cls: Any = METHODS[method]
        if method in PROMPT:
            return cls(prune_ratio=prune)  # type: ignore[no-any-return]
        layers = self.layers[:1] if method == "fastv" else self.layers
        where = {"layers": layers, "stack": self.space.stack}
        if cls.amounts == ("merge_count",):
            every = self.space.layers
            count = round(merge * self.image_tokens / len(every))
            return cls(layers=every, stack=self.space.stack, merge_count=count)  # type: ignore[no-any-return]
        each = 1 - (1 - prune - merge) ** (1 / len(layers))
        given = {"prune_ratio": prune, "merge_ratio": merge}
        ratios = {name: round(each * x / (prune + merge), 3) for name, x in given.items() if x}
        if cls is PuMerConfig and self.space.stack != "decoder":
            ratios["text_merge_ratio"] = TEXT_MERGE_RATIO
        return cls(**where, **ratios)  # type: ignore[no-any-return]


def as_python(config: ReductionConfig) -> str:
    """The call that makes a reduction."""
    if isinstance(config, PuMerConfig):
        step, layers = config.schedule[0], tuple(step.layer for step in config.schedule)
        given: dict[str, Any] = {"layers": layers, "stack": step.stack}
        given |= {name: getattr(step, name) for name in PuMerConfig.amounts}
    else:
        given = {field.name: getattr(config, field.name) for field in fields(config)}
    defaults = {field.name: field.default for field in fields(config)} | {"stack": "fusion"}
    shown = [f"{name}={x!r}" for name, x in given.items() if x != defaults.get(name, 0.0) and x is not None]
    return f"pumer.patch(model, pumer.{type(config).__name__}({', '.join(shown)}))"
