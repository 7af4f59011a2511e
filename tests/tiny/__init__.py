"""Tiny models of every backbone, random batches for them, and example configs of every method: the grid of tests.

`examples.py` has configs of every method, `vilt.py` and `meter.py` build models, `base.py` builds batches,
`decoders.py` builds generative models and prompts for them; what lies on disk is in `tests/fixtures`. A new entry of
METHODS, BACKBONES or TASKS is tested once it has an entry in EXAMPLES, TINY or FOLDERS; tests fail as long as it has
none.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tiny.base import GRIDS, PATCH, WORDS, Sample, Tiny
from tiny.examples import EXAMPLES, WITH_HEADS, Example, in_vision, label, moved
from tiny.meter import METER
from tiny.vilt import VILT

TINY: dict[str, Tiny] = {"vilt": VILT, "meter": METER}

FOLDERS = {
    "vqav2": "tiny_vqa",
    "nlvr2": "tiny_nlvr2",
    "snli_ve": "tiny_snli_ve",
    "flickr30k": "tiny_flickr",
    "coco": "tiny_coco",
}
"""Fixture with a data folder of each task, in tests/fixtures/datasets.py."""


def grid(examples: Sequence[Example]) -> list[tuple[str, Example]]:
    """Every backbone with every one of these configs that it takes, fitted to it."""
    return [
        (backbone, replace(example, config=tiny.fit(example.config), off=example.off and tiny.fit(example.off)))
        for backbone, tiny in TINY.items()
        for example in examples
        if tiny.takes(example.config)
    ]


GRID = grid([example for examples in EXAMPLES.values() for example in examples])
"""Every backbone with every example config."""

HEADS = [(backbone, head) for backbone, tiny in TINY.items() for head in tiny.heads]
"""Every head class of every backbone."""


def max_examples(count: int) -> settings:
    """So many examples of hypothesis, where a test usually has 100; the profile may ask for fewer, or for more."""
    return settings(max_examples=-(-count * settings.default.max_examples // 100))


def covering(*axes: Iterable[Any]) -> list[Any]:
    """Every combination, as parameters of a test; slow, but for a few among which every value of every axis is."""
    values = [list(axis) for axis in axes]
    quick = [tuple(axis[n % len(axis)] for axis in values) for n in range(max(map(len, values)))]
    found = list(product(*values))
    marks = [[] if case in quick else [pytest.mark.slow] for case in found]
    return [pytest.param(*case, id=_named(case), marks=mark) for case, mark in zip(found, marks, strict=True)]


def _named(value: Any) -> str:
    """What a value is called in the name of a test."""
    if isinstance(value, tuple):
        return "-".join(map(_named, value))
    return str(getattr(value, "method", getattr(value, "__name__", value)))


def answer(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """What the model computes: logits, or the pooled vector of a base model."""
    output = model(**inputs)
    return output.logits if "logits" in output else output.pooler_output


def to(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The batch with its images in another precision."""
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}


class Shapes(TorchDispatchMode):
    """Notes every tensor that an operator returns."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else [result]
        self.seen |= {tuple(item.shape) for item in results if isinstance(item, torch.Tensor)}
        return result
