"""Layers are called as transformers calls them: hooks, and checkpoints that others put around them."""

import weakref
from functools import partial

import pytest
import torch
from tiny import GRIDS, TINY, answer
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper

import pumer
from pumer import DynamicViTConfig, PuMerConfig, RandomPruningConfig, Step
from pumer.backbones import BACKBONES, Reduction
from pumer.reducers.learned import take_losses

CONFIGS = {
    "pumer": PuMerConfig(layers=(0, 2), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3),
    "vision": PuMerConfig(
        schedule=(Step(stack="vision", layer=1, merge_ratio=0.3), Step(layer=0, prune_ratio=0.2, merge_ratio=0.2))
    ),
    "random": RandomPruningConfig(layers=(1,), prune_ratio=0.3),
    "dynamicvit": DynamicViTConfig(layers=(0, 2), prune_ratio=0.3),
}
CASES = [(backbone, config) for backbone in TINY for config in CONFIGS]
each_case = pytest.mark.parametrize(("backbone", "config"), CASES)


def layers(backbone, model):
    return [layer for stack in BACKBONES[backbone].layers(TINY[backbone].root(model)).values() for layer in stack]


def states_of(output):
    return output[0] if isinstance(output, tuple) else output


def watch(backbone, model):
    """Kinds of hooks that fire, and the shapes of the states they see, by layer."""
    seen = {index: [] for index in range(len(layers(backbone, model)))}
    for index, layer in enumerate(layers(backbone, model)):
        layer.register_forward_pre_hook(lambda m, args, i=index: seen[i].append(("before", type(args[0]))))
        layer.register_forward_hook(
            lambda m, args, out, i=index: seen[i].append(("after", type(out), type(states_of(out))))
        )
        layer.register_full_backward_hook(lambda m, grads, out, i=index: seen[i].append(("gradient", len(out))))
    return seen


@each_case
@pytest.mark.parametrize("checkpointed", [False, True])
def test_hooks_fire_once_and_see_what_they_see_in_transformers(backbone, config, checkpointed):
    case = TINY[backbone]
    inputs = case.batch(GRIDS)

    def calls(model, checkpointed):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        seen = watch(backbone, model)
        answer(model.train(), inputs).sum().backward()
        return seen

    once, expected = calls(case.build(), False), calls(case.build(), checkpointed)
    seen = calls(pumer.patch(case.build(), case.fit(CONFIGS[config])), checkpointed)
    # Older versions of transformers run a layer's hooks again where they checkpoint it whole.
    assert all(seen[layer] in (once[layer], expected[layer]) for layer in seen)
    assert all([kind for kind, *_ in layer] == ["before", "after", "gradient"] for layer in once.values())


@pytest.mark.parametrize("backbone", TINY)
def test_hooks_see_and_change_the_states_that_leave_a_layer(backbone):
    case = TINY[backbone]
    model, inputs = pumer.patch(case.build(), case.fit(CONFIGS["pumer"])), case.batch(GRIDS)
    found = []
    handle = layers(backbone, model)[-2].register_forward_hook(lambda m, args, out: found.append(states_of(out)))
    plain = answer(model, inputs)
    handle.remove()
    output = case.root(model)(**{name: x for name, x in inputs.items() if name != "labels"}, output_hidden_states=True)
    if backbone == "vilt":
        assert torch.equal(found[0], output.hidden_states[-2])

    def double(module, args, out):
        return tuple(2 * x for x in out) if isinstance(out, tuple) else 2 * out

    for layer in layers(backbone, model)[:1]:
        layer.register_forward_hook(double)
    assert not torch.equal(answer(model, inputs), plain)


def gradients(case, config, wrap):
    model, inputs = pumer.patch(case.build(), config).train(), case.batch(GRIDS)
    model = wrap(model)
    torch.manual_seed(3)
    output = answer(model, inputs)
    losses = take_losses(model)
    loss = (output**2).sum() + (0 if losses is None else losses)
    loss.backward()
    assert take_losses(model) is None, "what is computed again owes nothing"
    return loss, [parameter.grad for parameter in model.parameters()]


@each_case
@pytest.mark.parametrize("wrapper", ["transformers", "reentrant", "torch"])
def test_checkpoints_give_the_same_loss_and_gradients(backbone, config, wrapper):
    """Those that FSDP puts around whole layers (torch) run the decision anew, transformers' do not."""
    case = TINY[backbone]

    def wrap(model):
        if wrapper != "torch":
            model.gradient_checkpointing_enable({"use_reentrant": wrapper == "reentrant"})
            return model
        around = partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl.NO_REENTRANT)
        chosen = {id(layer) for layer in layers(backbone, model)}
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if id(child) in chosen:
                    setattr(module, name, around(child))
        return model

    fitted = case.fit(CONFIGS[config])
    (loss, expected), (same, found) = gradients(case, fitted, lambda model: model), gradients(case, fitted, wrap)
    torch.testing.assert_close(same, loss, atol=0, rtol=0)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if isinstance(one, Tensor):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backbone", TINY)
def test_a_trace_counts_layers_once_whatever_is_run_again(backbone):
    case = TINY[backbone]
    model = pumer.patch(case.build(), case.fit(CONFIGS["pumer"])).train()
    chosen = layers(backbone, model)[0]
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if child is chosen:
                setattr(module, name, checkpoint_wrapper(child))
    with pumer.trace(model) as trace:
        answer(model, case.batch(GRIDS)).sum().backward()
    (told,) = trace.forwards
    assert len(told.places) == 2


@pytest.mark.parametrize("backbone", TINY)
def test_what_a_reducer_has_seen_is_freed(backbone, monkeypatch):
    """Keys and unreduced states are not held until the next reduction."""
    case, seen, alive = TINY[backbone], [], []
    model = pumer.patch(case.build(), case.fit(PuMerConfig(layers=(0,), prune_ratio=0.2, merge_ratio=0.3)))
    decide = Reduction.decide

    def watched(self, reducer, cues):
        seen.extend([weakref.ref(cues.key), weakref.ref(cues.query)])
        return decide(self, reducer, cues)

    monkeypatch.setattr(Reduction, "decide", watched)
    layers(backbone, model)[-1].register_forward_hook(lambda *_: alive.append([ref() is not None for ref in seen]))
    with torch.no_grad():
        answer(model, case.batch(GRIDS))
    assert alive == [[False, False]]
