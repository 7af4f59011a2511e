"""The limit has the token counts of the real schedule, and costs slices alone."""

import pytest
import torch

import pumer
from pumer import NoReduction, PuMerConfig, Step
from pumer.profiling.inputs import inputs_for
from pumer.profiling.limit import FirstTokens, LimitConfig, SlicingReducer, limit_of, measured_reduction
from pumer.profiling.named_models import model_from, skeleton, variant
from pumer.reducers import config_from_dict, config_to_dict
from pumer.reducers.cues import Cues
from pumer.tokens import Tokens, attention_bias
from pumer.utils.errors import InputError

SCHEDULES = {
    "vilt-b32": PuMerConfig.preset("vilt", "vqav2"),
    "meter-b16": PuMerConfig.preset("meter", "snli_ve", vision=True),
}
SMALL = PuMerConfig(layers=(0, 2), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.2)


@pytest.fixture(params=["tiny_vilt", "tiny_meter"])
def base(request):
    return pumer.load(request.getfixturevalue(request.param))


@pytest.mark.parametrize("name", SCHEDULES)
def test_token_counts_and_products_are_those_of_the_schedule(name):
    with torch.device("meta"):
        model = skeleton(f"preset:{name}")
    real, limit = (pumer.plan(variant(model, config)) for config in (SCHEDULES[name], LimitConfig.of(SCHEDULES[name])))
    counts = [
        [(row.short_name, row.text_tokens, row.image_tokens, row.text_tokens_out, row.image_tokens_out) for row in each]
        for each in (real.layers, limit.layers)
    ]
    assert counts[0] == counts[1]
    assert 0.98 * real.macs < limit.macs < real.macs  # without what deciding costs


def test_forward_and_gradients(base):
    inputs = inputs_for(base, base.config.image_size, 12, batch=3)
    whole, model = variant(base, NoReduction()), variant(base, LimitConfig.of(SMALL))
    logits = model(**inputs).logits
    assert logits.shape == whole(**inputs).logits.shape
    assert not torch.equal(logits, whole(**inputs).logits)
    logits.sum().backward()
    assert all(weight.grad is not None for weight in model.classifier.parameters())
    assert torch.equal(pumer.patch(model, NoReduction())(**inputs).logits, whole(**inputs).logits)


def test_vision_steps_run():
    steps = (Step(stack="vision", layer=1, merge_ratio=0.2), *SMALL.schedule)
    model = variant(model_from("small:meter"), LimitConfig.of(PuMerConfig(schedule=steps)))
    with torch.inference_mode(), pumer.trace(model) as trace:
        assert model(**inputs_for(model, 96, 12, batch=2)).logits.isfinite().all()
    assert trace.forwards[0].places[0] == ("vision", 1)


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("step", [SMALL.schedule[0], Step(layer=0, merge_ratio=0.3)])
def test_slices_are_what_the_decision_says(streams, step):
    B, T, V, D = 2, 7, 11, 5
    states = torch.randn(B, T + V, D)
    biases = (attention_bias(torch.ones(B, T + V, dtype=torch.bool)),)
    parts = (states,)
    if streams == 2:
        parts, biases = states.split([T, V], dim=1), biases[0].split([T, V], dim=-1)
    slots = torch.arange(T + V).expand(B, -1)
    tokens = Tokens(tuple(parts), torch.ones(B, T + V), tuple(biases), T, lambda: slots)
    decision = SlicingReducer(step).decide(Cues(tokens))
    assert isinstance(decision, FirstTokens)
    expected, sliced = tokens.reduced(decision), tokens.reduce(decision)
    assert sliced.slots == expected.slots == (step.text_left(T), step.left(V))
    for name in ("states", "size", "bias", "lengths", "source"):
        assert torch.equal(getattr(sliced, name), getattr(expected, name)), name
    assert all(x.is_contiguous() for x in sliced.streams)


def test_only_measuring_knows_it():
    plain = limit_of(config_to_dict(SMALL))
    assert plain["method"] == "limit"
    assert measured_reduction(plain) == LimitConfig.of(SMALL)
    assert measured_reduction(config_to_dict(SMALL)) == SMALL
    assert measured_reduction("none") == NoReduction()
    with pytest.raises(InputError, match="'limit' is unknown"):
        config_from_dict(plain)
    with pytest.raises(ValueError, match="give a reduction of method 'pumer'"):
        limit_of({"method": "none"})


def test_an_unknown_small_model_names_the_known():
    with pytest.raises(InputError, match=r"small:nothing.*small:vilt"):
        model_from("small:nothing")
