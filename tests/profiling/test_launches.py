"""How many kernels a reduction launches, and that no forward waits for the device: counted without one."""

from dataclasses import replace

import pytest
import tiny
import torch
from tiny import GRID, GRIDS, TINY
from torch.utils._python_dispatch import TorchDispatchMode

import pumer
import pumer.reducers.decisions as decisions
from pumer import PuMerConfig

VIEWS = set(
    [
        "_unsafe_view",
        "_reshape_alias",
        "alias",
        "as_strided",
        "detach",
        "diagonal",
        "empty",
        "empty_like",
        "empty_strided",
        "expand",
        "lift_fresh",
        "new_empty",
        "permute",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "t",
        "transpose",
        "unbind",
        "unfold",
        "unsafe_split",
        "unsqueeze",
        "view",
    ]
)
"""Operators that launch nothing."""

SYNCS = {"lift_fresh", "_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique"}
"""Operators that wait for the device; `lift_fresh` copies what a Python list holds to it, which waits as well."""

BUDGETS = {"pumer": 48}
"""Launches of one reduction of a method, at most."""

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


IN_LAYERS = [
    (backbone, example) for backbone, example in GRID if example.config.method != "none" and not tiny.in_vision(example)
]


@pytest.mark.parametrize(("backbone", "example"), IN_LAYERS, ids=tiny.label)
def test_launches_of_a_reduction(backbone, example):
    """What a second reducing layer adds to a forward."""
    case = TINY[backbone]
    inputs, counted = case.batch(GRIDS), []
    for reducing in ([0], [0, case.stride]):
        model = pumer.patch(case.build(), in_layers(example.config, reducing))
        counted.append(len(calls(model, inputs).launches))
    budget = BUDGETS.get(example.config.method, OTHERS)
    assert 0 < counted[1] - counted[0] <= budget


def in_layers(config, layers):
    """The config's first step in these layers."""
    if isinstance(config, PuMerConfig):
        return PuMerConfig(schedule=tuple(replace(config.schedule[0], layer=layer) for layer in layers))
    return replace(config, layers=tuple(layers))


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(("backbone", "example"), GRID, ids=tiny.label)
def test_no_forward_waits(backbone, example, grad):
    model = pumer.patch(TINY[backbone].build(), example.config).train(grad)
    assert calls(model, TINY[backbone].batch(GRIDS), grad).syncs == []


@pytest.mark.parametrize(("backbone", "head"), tiny.HEADS)
def test_no_head_waits(backbone, head):
    case = TINY[backbone]
    model = pumer.patch(case.build(head), case.fit(PuMerConfig(layers=(0,), prune_ratio=0.2, merge_ratio=0.2)))
    assert calls(model, case.batch(GRIDS, head)).syncs == []


def counted_anew(found, lengths):
    """The table copied to the device in every forward."""
    rows = torch.tensor(found.counts.tolist(), device=lengths.device)
    return torch.embedding(rows, lengths + found.offset)


def most_of_all(found, lengths):
    """A count that Python asks for."""
    return decisions.counts_of(found, lengths)[:, :, : 4 if int(lengths.max()) else 0]


@pytest.mark.parametrize("backbone", TINY)
@pytest.mark.parametrize("mutant", [counted_anew, most_of_all])
def test_a_forward_that_waits_is_seen(backbone, mutant, monkeypatch):
    monkeypatch.setattr(decisions, "counts_of", decisions.counts, raising=False)
    monkeypatch.setattr(decisions, "counts", mutant)
    case = TINY[backbone]
    model = pumer.patch(case.build(), case.fit(PuMerConfig(layers=(0,), prune_ratio=0.2)))
    assert calls(model, case.batch(GRIDS)).syncs
