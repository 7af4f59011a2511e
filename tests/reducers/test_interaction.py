"""Pruning by image-text interaction against a loop over one sample: how many stay in each layer, and which."""

from dataclasses import replace
from math import ceil, exp, log

import pytest
import torch
from by_hand import handed_out
from hypothesis import given
from hypothesis import strategies as st
from reducers.prompts import (
    PROMPTS,
    attention_by_hand,
    check,
    held_by,
    kept_by_hand,
    prompt_cues,
    slots_of,
)

from pumer.functional import gather_tokens
from pumer.reducers.cues import ASKING, Cues
from pumer.reducers.interaction import InteractionConfig, mutual_information
from pumer.utils.errors import InputError

SEEDS = st.integers(0, 2**31)
CONFIGS = st.builds(
    InteractionConfig,
    layers=st.sets(st.integers(0, 31), min_size=1, max_size=4).map(tuple),
    prune_ratio=st.one_of(st.just(0.5), st.floats(0.01, 0.99)),
    slope=st.sampled_from([0.0, 0.4, 3.0, 100.0]),
    sensitivity=st.sampled_from([0.0, 0.2, 5.0]),
)


def decide(config, layer, cues):
    return config.reducers()["decoder", layer].decide(cues)


def information_by_hand(table):
    """Of a list of rows of numbers."""
    total = sum(map(sum, table))
    if not total:
        return 0
    rows, columns = [sum(row) / total for row in table], [sum(column) / total for column in zip(*table, strict=True)]
    return sum(
        p / total * log(p / total / (rows[i] * columns[j]))
        for i, row in enumerate(table)
        for j, p in enumerate(row)
        if p
    )


def decided_by_hand(config, layer, cues, sample, entered, spent):
    """Image slots of one sample that are pruned."""
    text, image, held = slots_of(cues, sample, False), slots_of(cues, sample, True), held_by(cues, sample)
    rows, real = attention_by_hand(cues, sample, text[-ASKING:])
    table = rows.mean(dim=0)[:, [real.index(i) for i in image]].tolist()
    slope = max(config.slope - config.sensitivity * information_by_hand(table), 0)

    def share(slope):  # of a logistic curve, relative to this layer, so that no part of it is 0
        curve = [exp(min(x, 0)) / (1 + exp(-abs(x))) for x in (slope * (config.midpoint - at) for at in config.layers)]
        here = config.layers.index(layer)
        return curve[here] / sum(curve[here:]) if sum(curve[here:]) else 1 / len(curve[here:])

    budget = round(entered * (1 - config.prune_ratio) * len(config.layers)) - spent
    wanted = budget * min(share(slope), share(config.slope))
    count = max(ceil(wanted - 1e-3), 1)
    score = dict(zip(real, rows.sum(dim=(0, 1)).tolist(), strict=True)) if text else dict.fromkeys(image, 0)
    return set(image) - set(kept_by_hand(image, score, count, held)), count


@given(CONFIGS, PROMPTS, st.booleans(), st.booleans(), SEEDS)
def test_each_layer_spends_its_share(config, prompts, left, causal, seed):
    """All layers, one after the other."""
    cues = prompt_cues(prompts, seed, left, causal=causal, heads=4 if causal else 2)
    entered, spent = [len(slots_of(cues, b, True)) for b in range(len(prompts))], [0] * len(prompts)
    random = torch.Generator().manual_seed(seed)
    for layer in config.layers:
        tokens = replace(cues.tokens, biases=(cues.bias,))
        cues = replace(cues, tokens=tokens)
        decision = decide(config, layer, handed_out(cues, {"text_rows"}))
        # `check` follows sources of one step; the budget needs those of all
        once = replace(cues, tokens=replace(tokens, origin=lambda t=tokens: slots(t), history=()))
        for b in range(len(prompts)):
            pruned, _ = decided_by_hand(config, layer, cues, b, entered[b], spent[b])
            check(once, decision, b, pruned, {})
            spent[b] += int(decision.lengths[b, 1])
        tokens = tokens.reduce(decision)
        B, N = tokens.size.shape
        key = torch.randn(B, 2, N, 6, dtype=torch.float64, generator=random)
        query = torch.randn(B, cues.query.shape[1], N, 6, dtype=torch.float64, generator=random)
        bias = tokens.size.double().log()[:, None, None]
        cues = Cues(tokens, key, query, bias, causal=causal)


def slots(tokens):
    return torch.where(tokens.mask, torch.arange(tokens.mask.shape[1]), -1)


def run(config, cues):
    """Image tokens ``(B,)`` after each layer."""
    found = []
    for layer in config.layers:
        decision = decide(config, layer, cues)
        key, query = (gather_tokens(x, decision.index) for x in (cues.key, cues.query))
        cues = replace(cues, tokens=cues.tokens.reduce(decision), key=key, query=query)
        found.append(cues.tokens.lengths[:, 1])
    return torch.stack(found, dim=1)


def prompt(images=60, words=6):
    return [(0, False), *[(1, False)] * images, *[(0, False)] * words]


@given(st.floats(0.1, 0.9), st.sampled_from([0.0, 0.2, 0.8]), SEEDS)
def test_the_budget_is_what_the_layers_keep_together(ratio, sensitivity, seed):
    config = InteractionConfig(layers=(2, 8, 16, 24), prune_ratio=ratio, sensitivity=sensitivity)
    cues = prompt_cues([prompt(), prompt(40), prompt(80, 3)], seed, True, causal=True)
    left = run(config, cues)
    for n, kept in zip((60, 40, 80), left.tolist(), strict=True):
        assert kept == sorted(kept, reverse=True)
        assert sum(kept) == round(n * (1 - ratio) * 4) or (kept[-1] == 1 and sum(kept) <= n * (1 - ratio) * 4 + 4)


def words_that_know_their_tokens(cues):
    """Keys and queries by which each of the last six words attends to an image token of its own."""
    key, query, N = torch.zeros_like(cues.key), torch.zeros_like(cues.query), cues.key.shape[2]
    for word in range(6):  # the width of a head is 6: a direction for each word
        key[:, :, 1 + word, word] = 20
        query[:, :, N - 6 + word, word] = 20
    return key, query


def test_strong_interaction_prunes_early():
    """Two prompts of one length: in one, every word attends to a token of its own; in the other, to all alike."""
    cues = prompt_cues([prompt(30, 6)] * 2, 0, True, spare=0, causal=True)
    key, query = words_that_know_their_tokens(cues)
    key[1], query[1] = 0, 0
    config = InteractionConfig(layers=(4, 12, 20), prune_ratio=0.5, sensitivity=0.3)
    strong, weak = run(config, replace(cues, key=key, query=query)).tolist()
    assert strong == [15, 15, 15]
    assert weak[0] > 18 and sum(weak) == 45


def test_buffers_are_bounded_by_the_budget():
    config = InteractionConfig(layers=(2, 8, 16, 24), prune_ratio=0.8)
    cues = prompt_cues([prompt(100)], 0, True, spare=0, causal=True, known=True)
    decision = decide(config, 2, cues)
    tokens = cues.tokens.reduce(decision)
    assert decision.known is None, "only the device knows how many are left"
    assert tokens.segments.slots[1] < 40 and tokens.size.shape[1] == 7 + tokens.segments.slots[1]


def test_one_layer_keeps_the_same_fraction_of_every_prompt():
    config = InteractionConfig(layers=(4,), prune_ratio=0.7)
    cues = prompt_cues([prompt(50), prompt(20), prompt(10, 2)], 1, True, causal=True)
    assert run(config, cues)[:, 0].tolist() == [15, 6, 3]


@given(st.lists(st.lists(st.floats(0, 1, width=16), min_size=3, max_size=3), min_size=1, max_size=5))
def test_mutual_information(table):
    found = mutual_information(torch.tensor([table], dtype=torch.float64))
    assert float(found[0]) == pytest.approx(max(information_by_hand(table), 0), abs=1e-9)


def test_mutual_information_of_known_tables():
    tables = torch.stack([torch.eye(4), torch.ones(4, 4), torch.zeros(4, 4)])
    assert mutual_information(tables).tolist() == pytest.approx([log(4), 0, 0], abs=1e-6)


@pytest.mark.parametrize("poison", ["key", "query"])
def test_a_broken_sample_breaks_no_other(poison):
    cues, config = (
        prompt_cues([prompt(20)] * 2, 3, True, causal=True),
        InteractionConfig(layers=(2, 9), prune_ratio=0.6),
    )
    expected = run(config, cues)
    broken = getattr(cues, poison).clone()
    broken[0] = torch.nan
    found = run(config, replace(cues, **{poison: broken}))
    assert torch.equal(found[1], expected[1]) and (found[0] >= 1).all()


@given(SEEDS)
def test_nothing_depends_on_the_batch(seed):
    config = InteractionConfig(layers=(2, 20), prune_ratio=0.5, sensitivity=0.8)
    prompts = [prompt(60)[1:], prompt(45, 2)[1:], prompt(30, 12)]  # all words see images, but the very first one
    cues = prompt_cues(prompts, seed, True, spare=0, causal=True)
    decision = decide(config, 2, cues)
    for b, each in enumerate(prompts):
        alone = prompt_cues([each], seed, True, spare=0, causal=True)
        key, query = (x[b : b + 1, :, -len(each) :] for x in (cues.key, cues.query))
        found = decide(config, 2, replace(alone, key=key, query=query))
        assert torch.equal(found.destination[0] >= 0, decision.destination[b, -len(each) :] >= 0)


def test_no_layer_keeps_more_than_by_the_full_slope():
    """Before the midpoint, a curve that is less steep falls sooner."""
    config = InteractionConfig(layers=(0, 10), prune_ratio=0.5, slope=3.0, sensitivity=1.6)
    key, query = words_that_know_their_tokens(cues := prompt_cues([prompt(60)], 0, True, spare=0, causal=True))
    cues = replace(cues, key=key, query=query)
    rows, _ = cues.asking_rows()
    assert 1 < float(mutual_information(rows.mean(dim=1))) * 1.6 < 2.95
    assert run(config, cues).tolist() == [[30, 30]]


def test_prompts_compile_as_one_graph():
    config = InteractionConfig(layers=(2, 9), prune_ratio=0.5)

    reducer = config.reducers()["decoder", 2]

    def reduce(key, query, cues):
        return cues.tokens.reduce(reducer.decide(replace(cues, key=key, query=query))).states

    compiled = torch.compile(reduce, fullgraph=True, backend="eager", dynamic=False)
    cues = prompt_cues([prompt(20)] * 2, 3, True, causal=True)
    for scale in (1, 5):
        with torch._dynamo.config.patch(error_on_recompile=True):
            found = compiled(cues.key * scale, cues.query, cues)
        torch.testing.assert_close(found, reduce(cues.key * scale, cues.query, cues))


def test_nothing_to_prune_has_no_reducer():
    assert not InteractionConfig(layers=(2, 9)).reducers()


@pytest.mark.parametrize(("name", "value"), [("slope", -1.0), ("sensitivity", -0.1), ("stack", "fusion")])
def test_wrong_settings_are_named(name, value):
    with pytest.raises(InputError, match=name) as caught:
        InteractionConfig(**{"layers": (1,), "prune_ratio": 0.5, name: value})
    assert str(value) in str(caught.value)
