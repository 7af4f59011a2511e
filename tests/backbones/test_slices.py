"""Inference in slices of the batch: the same answers, fewer examples at a time while there are many tokens."""

import pytest
import tiny
import torch
from tiny import GRID, GRIDS, HEADS, TINY, answer

import pumer
from pumer import InputError, NoReduction, PuMerConfig
from pumer.backbones import BACKBONES
from pumer.patching import reductions

BATCH = GRIDS * 3
CONFIG = PuMerConfig(layers=(0, 1), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3)
SHALLOW = PuMerConfig(layers=(0,), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3)


@pytest.mark.parametrize(("backbone", "example"), GRID, ids=tiny.label)
def test_every_method_answers_the_same(backbone, example):
    case = TINY[backbone]
    model, inputs = case.build(), case.batch(BATCH, text=12)
    with torch.no_grad():
        whole = answer(pumer.patch(model, example.config), inputs)
        for size in (2, 4):  # the last slice is shorter
            torch.testing.assert_close(
                answer(pumer.patch(model, example.config, slice_size=size), inputs), whole, atol=2e-6, rtol=1e-5
            )


@pytest.mark.parametrize(("backbone", "head"), HEADS)
def test_every_head_answers_the_same(backbone, head):
    case = TINY[backbone]
    model, inputs = case.build(head), case.batch(BATCH, head, text=12)
    with torch.no_grad():
        whole = answer(pumer.patch(model, case.fit(CONFIG)), inputs)
        sliced = answer(pumer.patch(model, case.fit(CONFIG), slice_size=2), inputs)
    torch.testing.assert_close(sliced, whole, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("backbone", TINY)
@pytest.mark.parametrize(("config", "layers"), [(SHALLOW, 2), (NoReduction(), 1)], ids=["pumer", "none"])
def test_slices_compile_as_one_graph(backbone, config, layers):
    """Few layers: the graph has each of them once for every slice."""
    case = TINY[backbone]
    model, inputs = case.build(layers=layers), case.batch(GRIDS, text=12)
    pumer.patch(model, case.fit(config), slice_size=2)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(answer(compiled, inputs), answer(model, inputs), atol=2e-6, rtol=1e-5)


def batches_of_the_first_layers(case, model, inputs):
    """Examples that each cross-modal layer saw at once."""
    seen = []
    root = case.root(model)
    layers = BACKBONES[reductions_name(root)].layers(root)["fusion"]
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, i=i: seen.append((i, args[0].shape[0])))
        for i, layer in enumerate(layers)
    ]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return seen


def reductions_name(root):
    return next(name for name, backbone in BACKBONES.items() if type(root) is backbone.classes[backbone.root])


@pytest.mark.parametrize("backbone", TINY)
def test_layers_after_the_last_reduction_see_the_whole_batch(backbone):
    case = TINY[backbone]
    model, inputs = pumer.patch(case.build(), case.fit(CONFIG), slice_size=2), case.batch(BATCH)
    last = 1 * case.stride + case.stride - 1  # the image layer of the pair, in METER
    with torch.no_grad():
        seen = batches_of_the_first_layers(case, model, inputs)
    assert {n for i, n in seen if i <= last} == {1, 2}
    assert {n for i, n in seen if i > last} == {len(BATCH)}
    pumer.patch(model, NoReduction(), slice_size=2)  # nothing ever gets fewer: all layers
    with torch.no_grad():
        assert {n for _, n in batches_of_the_first_layers(case, model, inputs)} == {1, 2}


@pytest.mark.parametrize("backbone", TINY)
def test_training_hidden_states_and_traces_take_the_whole_batch(backbone):
    case = TINY[backbone]
    model, inputs = pumer.patch(case.build(), case.fit(CONFIG), slice_size=2), case.batch(BATCH)
    assert {n for _, n in batches_of_the_first_layers(case, model, inputs)} == {len(BATCH)}
    with torch.no_grad(), pumer.trace(model) as trace:
        model(**inputs)
    assert len(trace.forwards) == 1 and len(trace.forwards[0].mask) == len(BATCH)
    with torch.no_grad():
        states = case.states(case.root(model)(**inputs, output_hidden_states=True))
    assert {len(state) for state in states} == {len(BATCH)}


@pytest.mark.parametrize("backbone", TINY)
def test_slices_from_a_number_of_bytes(backbone):
    case = TINY[backbone]
    model = case.build()
    one = BACKBONES[backbone].example_bytes(case.root(model))
    for size_bytes, examples in ((1, 1), (one, 1), (3 * one, 3), (4 * one - 1, 3)):
        pumer.patch(model, case.fit(CONFIG), slice_bytes=size_bytes)
        assert [state.slice_size for state in reductions(model)] == [examples]


@pytest.mark.parametrize("name", ["slice_size", "slice_bytes"])
@pytest.mark.parametrize("value", [0, -1, True, 2.5, "8"])
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises(InputError) as caught:
        pumer.patch(TINY["vilt"].build(), CONFIG, **{name: value})
    assert name in str(caught.value) and repr(value) in str(caught.value)


def test_both_settings_at_once_are_refused():
    with pytest.raises(InputError, match=r"slice_size.*slice_bytes"):
        pumer.patch(TINY["vilt"].build(), CONFIG, slice_size=2, slice_bytes=100)
