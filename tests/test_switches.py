"""`disabled` and `trace` hold for one thread or task, `torch.compile` included as far as it can tell."""

import asyncio
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
import torch
from tiny import GRIDS, TINY, answer

import pumer
from pumer import NoReduction, PuMerConfig
from pumer.patching import reductions

CASE = TINY["vilt"]
CONFIG = PuMerConfig(layers=(0, 2), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3)
INPUTS = CASE.batch(GRIDS)


def run(model):
    with torch.no_grad():
        return answer(model, INPUTS)


@pytest.fixture
def model():
    return pumer.patch(CASE.build(), CONFIG)


@pytest.fixture
def reduced(model):
    return run(model)


@pytest.fixture
def unreduced():
    return run(pumer.patch(CASE.build(), NoReduction()))


@contextmanager
def elsewhere(enter, model):
    """A thread that is inside a block; yields a function that runs something in that thread."""
    with ThreadPoolExecutor(1) as thread:
        stack = ExitStack()
        thread.submit(stack.enter_context, enter(model)).result()
        try:
            yield lambda *call: thread.submit(*call).result()
        finally:
            thread.submit(stack.close).result()


def test_a_block_of_one_thread_is_not_that_of_another(model, reduced, unreduced):
    with elsewhere(pumer.disabled, model) as there:
        assert torch.equal(run(model), reduced)
        assert torch.equal(there(run, model), unreduced)
        with pumer.disabled(model):
            assert torch.equal(run(model), unreduced)
        assert torch.equal(run(model), reduced)
        assert torch.equal(there(run, model), unreduced)
    assert torch.equal(run(model), reduced)


def test_a_trace_of_one_thread_has_no_forward_of_another(model, reduced):
    with elsewhere(pumer.trace, model) as there, pumer.trace(model) as trace:
        assert torch.equal(run(model), reduced)
        assert len(trace.forwards) == 1
        assert torch.equal(there(run, model), reduced)
        assert len(trace.forwards) == 1


def test_threads_that_leave_in_any_order_leave_nothing_behind(model, reduced):
    first, second = elsewhere(pumer.disabled, model), elsewhere(pumer.trace, model)
    third = elsewhere(pumer.disabled, model)
    for block in (first, second, third):
        block.__enter__()
    for block in (first, second, third):
        block.__exit__(None, None, None)
    assert torch.equal(run(model), reduced)
    (state,) = reductions(model)
    assert (state.disabling, state.recording, state.enabled, state.recorder) == (0, 0, True, None)


def test_an_error_in_a_thread_ends_its_block(model, reduced):
    def fail():
        with pumer.disabled(model), pumer.trace(model):
            raise KeyError

    with ThreadPoolExecutor(1) as thread:
        with pytest.raises(KeyError):
            thread.submit(fail).result()
        assert torch.equal(thread.submit(run, model).result(), reduced)
    assert reductions(model)[0].disabling == reductions(model)[0].recording == 0


def test_a_block_of_one_task_is_not_that_of_another(model, reduced, unreduced):
    async def both():
        inside, done = asyncio.Event(), asyncio.Event()

        async def plain():
            with pumer.disabled(model):
                inside.set()
                await done.wait()
                return run(model), await asyncio.create_task(child())

        async def child():
            return run(model)

        async def other():
            await inside.wait()
            outcome = run(model)
            done.set()
            return outcome

        return await asyncio.gather(plain(), other())

    (inside, child), outside = asyncio.run(both())
    assert torch.equal(inside, unreduced) and torch.equal(outside, reduced)
    assert torch.equal(child, unreduced), "a task that begins inside a block is inside it"


def test_two_models_are_switched_apart(model, reduced, unreduced):
    other = pumer.patch(CASE.build(), CONFIG)
    with pumer.disabled(model), pumer.disabled(other):
        with pumer.trace(other) as trace:
            assert torch.equal(run(model), unreduced)
        assert not trace.forwards
    with pumer.disabled(other):
        assert torch.equal(run(model), reduced)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_inside_no_block(model, twin_of, reduced, unreduced):
    with pumer.disabled(model), pumer.trace(model) as trace:
        twin = twin_of(model)
        assert torch.equal(run(twin), reduced) and not trace.forwards
        assert torch.equal(run(model), unreduced)
    (state,) = reductions(twin)
    assert (state.disabling, state.recording) == (0, 0)


@pytest.fixture
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_dynamo")
def test_a_compiled_graph_follows_its_own_thread(model, reduced, unreduced):
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for _ in range(2):
        assert torch.equal(run(compiled), reduced)
        with pumer.disabled(compiled), pumer.disabled(model):
            assert torch.equal(run(compiled), unreduced)
        assert torch.equal(run(compiled), reduced)
    with elsewhere(pumer.disabled, model), elsewhere(pumer.disabled, model) as there:
        assert torch.equal(there(run, compiled), unreduced)
    assert torch.equal(run(compiled), reduced)


def test_pumer_compile_makes_no_graph_of_a_block_of_another_thread(model, reduced, unreduced):
    compiled = pumer.compile(model, backend="inductor")
    with elsewhere(pumer.disabled, model) as there:
        assert torch.equal(run(compiled), reduced)
        assert compiled.graph_count == 0
        with pumer.disabled(model):
            assert there(run, model).equal(unreduced) and run(model).equal(unreduced)


@pytest.mark.parametrize("first", [pumer.disabled, pumer.trace])
def test_blocks_may_be_left_in_any_order(model, reduced, first):
    second = pumer.trace if first is pumer.disabled else pumer.disabled
    blocks = [first(model), second(model)]
    for block in blocks:
        block.__enter__()
    for block in blocks:
        block.__exit__(None, None, None)
    assert torch.equal(run(model), reduced)
    (state,) = reductions(model)
    assert state.enabled and state.recorder is None and state.disabling == state.recording == 0


def test_a_checkpoint_is_recomputed_as_it_was(model):
    """Also by autograd's own threads, which are in no block."""

    def backward(x):
        with pumer.disabled(model):
            y = torch.utils.checkpoint.checkpoint(
                lambda x: model(**INPUTS | {"pixel_values": x}).logits, x, use_reentrant=False
            )
            with ThreadPoolExecutor(1) as thread:
                thread.submit(y.sum().backward).result()

    x = INPUTS["pixel_values"].clone().requires_grad_()
    backward(x)
    assert x.grad is not None and x.grad.isfinite().all()
