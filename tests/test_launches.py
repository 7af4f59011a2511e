"""How many kernels a reduction launches, and that no forward waits for the device: counted without one."""

from dataclasses import replace

import pytest
import tiny
import torch
from tiny import EXAMPLES, GRIDS, TINY
from torch.utils._python_dispatch import TorchDispatchMode

import pumer
from pumer import PuMerConfig, tables
from pumer.training.config import TrainConfig  # noqa: F401

VIEWS = {
    "_unsafe_view", "_reshape_alias", "alias", "as_strided", "detach", "diagonal", "empty", "empty_like", "empty_strided",
    "expand", "lift_fresh", "new_empty", "permute", "select", "slice", "split", "split_with_sizes", "squeeze", "t",
    "transpose", "unbind", "unfold", "unsafe_split", "unsqueeze", "view",
}  # fmt: skip
"""Operators that launch nothing."""

SYNCS = {"lift_fresh", "_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "masked_select"}
"""Operators that wait for the device, or that copy what a Python list holds to it, which waits as well."""

BUDGET = {"pumer": 48}
OTHERS = 64


class Calls(TorchDispatchMode):
    """Notes the operators that are called."""

    def __init__(self):
        super().__init__()
        self.launches, self.syncs = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in SYNCS:
            self.syncs.append(name)
        if name not in VIEWS:
            self.launches.append(name)
        return func(*args, **(kwargs or {}))


def calls(model, inputs, grad=False):
    """Of a forward whose constants are made already."""
    with torch.set_grad_enabled(grad):
        model(**inputs)
        with Calls() as found:
            model(**inputs)
    return found


FIRST = [
    (backbone, example)
    for method, examples in EXAMPLES.items()
    for backbone, example in tiny.grid(examples)
    if method != "none" and not tiny.in_vision(example)
]


@pytest.mark.parametrize(("backbone", "example"), FIRST, ids=tiny.label)
def test_launches_of_a_reduction(backbone, example):
    """What a second reducing layer adds to a forward."""
    case, config = TINY[backbone], example.config
    inputs = case.batch(GRIDS)
    counted = []
    for layers in (1, 2):
        config = one_step(example.config, [case.stride * layer for layer in range(layers)])
        counted.append(len(calls(pumer.patch(case.build(), config), inputs).launches))
    print(backbone, example.config.method, counted[1] - counted[0])
    assert 0 < counted[1] - counted[0] <= BUDGET.get(config.method, OTHERS)


def one_step(config, layers):
    """The config's first step in these layers."""
    if isinstance(config, PuMerConfig):
        return PuMerConfig(schedule=tuple(replace(config.schedule[0], layer=layer) for layer in layers))
    return replace(config, layers=tuple(layers))
