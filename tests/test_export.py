"""Patched models outside of Python: traced by torch.jit, and in ONNX Runtime."""

import warnings
from dataclasses import replace
from functools import partial

import pytest
import tiny
import torch
from tiny import GRID, GRIDS, HEADS, TINY, answer

import pumer
from pumer import PuMerConfig

CLOSE = partial(torch.testing.assert_close, atol=1e-5, rtol=0)
CONFIG = PuMerConfig(layers=(0, 2), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3)
OTHER_GRIDS = ((9, 5, 6), (10, 6, 4), (2, 1, 3))
"""Of the same shapes when padded as GRIDS are, and with other lengths."""


def padded_alike(case, head=None, seed=0, grids=GRIDS):
    return case.batch(grids, head, seed=seed, text=10, rows=6, columns=6)


# ---------------------------------------------------------------- torch.jit.trace


def traced(model, inputs):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes become constants, which is the point; torch deprecates tracing
        return torch.jit.trace(model, example_kwarg_inputs=dict(inputs), strict=False)


def check_traced(case, head, config):
    """Equal to eager for the traced batch, and for another one of its shapes."""
    model, inputs = pumer.patch(case.build(head), config), padded_alike(case, head)
    graph, name = traced(model, inputs), "logits" if "logits" in model(**inputs) else "pooler_output"
    other = padded_alike(case, head, 7, OTHER_GRIDS)
    for batch in (inputs, other):
        CLOSE(graph(**batch)[name], answer(model, batch))


@pytest.mark.parametrize(("backbone", "head"), HEADS)
def test_traced_by_jit(backbone, head):
    check_traced(TINY[backbone], head, TINY[backbone].fit(CONFIG))


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "example"), GRID, ids=tiny.label)
def test_every_method_traced_by_jit(backbone, example):
    check_traced(TINY[backbone], TINY[backbone].heads[0], example.config)


def test_a_bounded_buffer_traced_by_jit():
    check_traced(TINY["vilt"], "ViltForQuestionAnswering", replace(CONFIG, max_image_tokens=36))
