"""Victor: the last image tokens become registers, learn, and go on alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reducers.prompts import DECODER_PROMPTS, check, prompt_cues, slots_of
from torch import nn

from pumer.reducers.learned import LearnedReducer
from pumer.reducers.victor import VictorConfig, VisualRegisters
from pumer.utils.errors import InputError


def registers(count, width=5):
    """Trained ones, as it were."""
    ((place, module),) = VictorConfig(layers=(3,), registers=count).learned({"decoder": width}).items()
    assert place == ("decoder", 3)
    nn.init.normal_(module.registers)
    return module


@given(st.integers(1, 12), DECODER_PROMPTS, st.booleans(), st.integers(0, 2**31))
def test_the_last_image_tokens_become_registers_and_stay(count, prompts, left, seed):
    cues, module = prompt_cues(prompts, seed, left, causal=True), registers(count)
    tokens = cues.tokens
    image = tokens.mask & (tokens.segments.segment > 0)
    entered, decision = module.enter(tokens.states, image), module.decide(cues)
    for b in range(len(prompts)):
        slots = slots_of(cues, b, True)
        expected = tokens.states[b].clone()
        for back, slot in enumerate(reversed(slots[-count:])):
            expected[slot] += module.registers[count - 1 - back].detach()
        assert torch.equal(entered[b], expected)
        check(cues, decision, b, set(slots[:-count]), {})


def test_fresh_registers_change_nothing():
    (module,) = VictorConfig(layers=(0,), registers=3).learned({"decoder": 4}).values()
    states = torch.randn(2, 6, 4)
    assert torch.equal(module.enter(states, torch.ones(2, 6, dtype=torch.bool)), states)
    assert isinstance(module, LearnedReducer) and sorted(module.state_dict()) == ["registers"]
    assert not VictorConfig(layers=(0,), registers=3).reducers(), "without weights there is nothing to do"


def test_registers_learn_in_training_too():
    cues, module = prompt_cues([[(0, False), *[(1, False)] * 6, (0, False)]] * 2, 0, True, causal=True), registers(4)
    tokens = cues.tokens
    states = module.train().enter(tokens.states, tokens.mask & (tokens.segments.segment > 0))
    reduced = tokens.with_streams(states).reduce(module.decide(cues))
    assert reduced.lengths.tolist() == [[2, 4]] * 2, "dropped, not hidden"
    reduced.states.square().sum().backward()
    assert (module.registers.grad.abs().sum(dim=1) > 0).all()
    assert module.losses == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_states_keep_their_dtype(dtype):
    states, image = torch.zeros(1, 4, 5, dtype=dtype), torch.tensor([[False, True, True, False]])
    assert registers(1).enter(states, image).dtype == dtype


def test_a_step_of_decoding_has_no_image():
    states = torch.randn(3, 1, 5)
    assert torch.equal(registers(2).enter(states, torch.zeros(3, 1, dtype=torch.bool)), states)


def test_a_broken_sample_breaks_no_other():
    states, image, module = torch.randn(2, 6, 5), torch.ones(2, 6, dtype=torch.bool), registers(2)
    expected = module.enter(states, image)[1]
    states[0] = torch.nan
    assert torch.equal(module.enter(states, image)[1], expected)


def test_entering_compiles_as_one_graph():
    module = registers(3)
    compiled = torch.compile(module.enter, fullgraph=True, backend="eager", dynamic=False)
    for seed in (0, 1):
        image = torch.rand(2, 9, generator=torch.Generator().manual_seed(seed)) < 0.6
        states = torch.randn(2, 9, 5)
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert torch.equal(compiled(states, image), module.enter(states, image))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": (1, 4)}, ["layers", "[1, 4]"]),
        ({"layers": (1,), "registers": 0}, ["registers", "0"]),
        ({"layers": (1,), "stack": "vision"}, ["stack", "vision"]),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(InputError) as caught:
        VictorConfig(**settings)
    assert all(word in str(caught.value) for word in words)


def test_the_reducer_is_a_module_of_its_width():
    module = registers(8, width=7)
    assert isinstance(module, VisualRegisters) and module.registers.shape == (8, 7)
