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
SHALLOW = PuMerConfig(layers=(0,), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3)
OTHER_GRIDS = ((9, 5, 6), (10, 6, 4), (2, 1, 3))
"""Of the same shapes when padded as GRIDS are, and with other lengths."""
WHOLE = ((10, 6, 6),) * 3
"""Without padding, among which the released code chooses by what rounding left of equal scores."""


def padded_alike(case, head=None, seed=0, grids=GRIDS):
    return case.batch(grids, head, seed=seed, text=10, rows=6, columns=6)


# ---------------------------------------------------------------- torch.jit.trace


def traced(model, inputs):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes become constants, which is the point; torch deprecates tracing
        return torch.jit.trace(model, example_kwarg_inputs=dict(inputs), strict=False)


def check_traced(case, head, config, first=GRIDS, second=OTHER_GRIDS, **settings):
    """Equal to eager for the traced batch, and for another one of its shapes."""
    model, inputs = pumer.patch(case.build(head, **settings), config), padded_alike(case, head, 0, first)
    graph, name = traced(model, inputs), "logits" if "logits" in model(**inputs) else "pooler_output"
    other = padded_alike(case, head, 7, second)
    for batch in (inputs, other):
        CLOSE(graph(**batch)[name], answer(model, batch))


@pytest.mark.parametrize(("backbone", "head"), HEADS)
def test_traced_by_jit(backbone, head):
    """One head with several reductions, the others with few layers."""
    case = TINY[backbone]
    config, settings = (CONFIG, {}) if head == case.heads[0] else (SHALLOW, {"layers": 1})
    check_traced(case, head, case.fit(config), **settings)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "example"), GRID, ids=tiny.label)
def test_every_method_traced_by_jit(backbone, example):
    grids = (GRIDS, OTHER_GRIDS) if example.any_batch else (WHOLE, WHOLE)
    check_traced(TINY[backbone], TINY[backbone].heads[0], example.config, *grids)


def test_a_bounded_buffer_traced_by_jit():
    check_traced(TINY["vilt"], "ViltForQuestionAnswering", replace(CONFIG, max_image_tokens=36))


# ---------------------------------------------------------------- ONNX


def shallow(backbone):
    """One layer of each kind, and no positions of patches: those of one colour are all alike."""
    model = TINY[backbone].build(layers=1)
    for name, parameter in model.named_parameters():
        if name.endswith(("embeddings.position_embeddings", "position_embedding.weight")):
            torch.nn.init.zeros_(parameter)
    return model


def in_onnx_runtime(model, inputs):
    """What ONNX Runtime answers with an exported model, of any batch size."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (),
            kwargs=dict(inputs),
            dynamo=True,
            verbose=False,
            dynamic_shapes={name: {0: batch} for name in inputs},
        )
    session = runtime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(batch):
        logits, *_ = session.run(None, {each.name: batch[each.name].numpy() for each in session.get_inputs()})
        return torch.from_numpy(logits)

    return run


def check_onnx(case, model, grids=(*OTHER_GRIDS, *GRIDS)):
    """Equal to eager for the exported batch, for one of another size, and for images of one colour, where all ties."""
    inputs = padded_alike(case, grids=grids[:3])
    run = in_onnx_runtime(model, inputs)
    others = padded_alike(case, seed=7, grids=grids)
    grey = inputs | {"pixel_values": torch.full_like(inputs["pixel_values"], 0.3)}
    for batch in (inputs, others, grey):
        with torch.no_grad():
            CLOSE(run(batch), answer(model, batch))


@pytest.mark.parametrize("backbone", ["vilt", pytest.param("meter", marks=pytest.mark.slow)])
def test_onnx(backbone):
    check_onnx(TINY[backbone], pumer.patch(shallow(backbone), SHALLOW))


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "example"), GRID, ids=tiny.label)
def test_every_method_in_onnx(backbone, example):
    grids = (*OTHER_GRIDS, *GRIDS) if example.any_batch else 2 * WHOLE
    check_onnx(TINY[backbone], pumer.patch(TINY[backbone].build(), example.config), grids)
