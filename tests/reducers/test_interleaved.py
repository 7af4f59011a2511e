"""Streams in which text and image interleave, as in a decoder's prompt: methods and decisions against plain loops."""

from dataclasses import replace

import pytest
import torch
from by_hand import groups, random_cues
from hypothesis import given
from hypothesis import strategies as st
from reducers.prompts import (
    PROMPTS,
    attention_by_hand,
    check,
    held_by,
    kept_by_hand,
    merged_by_hand,
    prompt_cues,
    slots_of,
)
from tiny import EXAMPLES, WITH_HEADS

from pumer import (
    AttentionReceivedConfig,
    EViTConfig,
    InputError,
    L2NormConfig,
    PoolingConfig,
    Step,
)
from pumer.reducers.cues import Cues
from pumer.reducers.dart import DARTConfig
from pumer.reducers.fastv import FastVConfig
from pumer.reducers.pumer import PuMerReducer
from pumer.reducers.sparsevlm import SparseVLMConfig
from pumer.tokens import Segments, Tokens
from pumer.visualization.tracing import Trace

RATIOS = st.one_of(st.just(0.0), st.sampled_from([0.1, 0.3, 0.5]), st.floats(0, 0.99))
STEPS = st.builds(Step, layer=st.just(0), prune_ratio=RATIOS, merge_ratio=RATIOS, text_merge_ratio=RATIOS)


def pumer_by_hand(step, cues, sample):
    """Who is pruned, and who is merged into whom."""
    text, image, held = slots_of(cues, sample, False), slots_of(cues, sample, True), held_by(cues, sample)
    kept = image
    if step.prune_ratio:
        rows, real = attention_by_hand(cues, sample, text)
        score = dict(zip(real, rows.sum(dim=(0, 1)).tolist(), strict=True))
        kept = kept_by_hand(image, score, step.kept(len(image)), held)
    into = merged_by_hand(kept, cues.key[sample], step.merges(len(image)), held)
    into |= merged_by_hand(text, cues.key[sample], step.text_merges(len(text)), held)
    return set(image) - set(kept), into


@given(STEPS, PROMPTS, st.booleans(), st.integers(0, 2**31))
def test_pumer_prunes_and_merges_between_the_texts(step, prompts, left, seed):
    cues = prompt_cues(prompts, seed, left)
    decision = PuMerReducer(step).decide(cues)
    for b in range(len(prompts)):
        check(cues, decision, b, *pumer_by_hand(step, cues, b))


@given(STEPS, STEPS, PROMPTS, st.booleans(), st.integers(0, 2**31))
def test_reductions_chain(first, second, prompts, left, seed):
    """The second one sees what the first one left; sources, and an output of its length, lead back to the input."""
    cues = prompt_cues(prompts, seed, left)
    tokens = cues.tokens.reduce(PuMerReducer(first).decide(cues))
    random = torch.Generator().manual_seed(seed)
    key, query = torch.randn(2, len(prompts), 2, tokens.size.shape[1], 6, dtype=torch.float64, generator=random)
    then = Cues(replace(tokens, origin=lambda: tokens.source, history=()), key, query, tokens.bias)
    decision = PuMerReducer(second).decide(then)
    last = tokens.reduce(decision)
    for b in range(len(prompts)):
        pruned, into = pumer_by_hand(second, then, b)
        for i, slot in enumerate(tokens.source[b].tolist()):
            goes = -1 if slot < 0 or slot in pruned else int(decision.destination[b, into.get(slot, slot)])
            assert int(last.source[b, i]) == goes
    back = last.expand(last.states, 3)
    assert torch.equal(back, last.expand(last.states)[:, :3])


@given(st.floats(0.05, 0.95), PROMPTS, st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_l2norm_keeps_keys_of_one_end(ratio, prompts, left, largest, seed):
    cues, sign = prompt_cues(prompts, seed, left), 1 if largest else -1
    config = L2NormConfig(layers=(0,), prune_ratio=ratio, keep="largest" if largest else "smallest")
    decision = config.decide(replace(cues, query=None))
    for b in range(len(prompts)):
        image = slots_of(cues, b, True)
        score = {i: sign * sum(float(key[i].norm()) for key in cues.key[b]) for i in image}
        kept = kept_by_hand(image, score, config.kept(len(image)), held_by(cues, b))
        check(cues, decision, b, set(image) - set(kept), {})


@given(st.floats(0.05, 0.95), PROMPTS, st.booleans(), st.integers(1, 20), st.integers(0, 2**31))
def test_attention_received_asks_evenly_spaced_tokens(ratio, prompts, left, rows, seed):
    cues = prompt_cues(prompts, seed, left)

    class Few(AttentionReceivedConfig):
        pass

    Few.rows = rows
    config = Few(layers=(0,), prune_ratio=ratio)
    decision = config.decide(cues)
    for b, prompt in enumerate(prompts):
        n = len(prompt)
        real = cues.tokens.mask[b].nonzero()[:, 0].tolist()
        asking = [real[i * n // min(n, rows)] for i in range(min(n, rows))]
        received, _ = attention_by_hand(cues, b, asking)
        score = dict(zip(real, received.sum(dim=(0, 1)).tolist(), strict=True))
        image = slots_of(cues, b, True)
        kept = kept_by_hand(image, score, config.kept(len(image)), held_by(cues, b))
        check(cues, decision, b, set(image) - set(kept), {})


@given(PROMPTS, st.booleans(), st.integers(0, 2**31))
def test_the_last_row_is_that_of_the_last_real_token(prompts, left, seed):
    cues = prompt_cues(prompts, seed, left)
    found = cues.last_row()
    for b in range(len(prompts)):
        image, last = slots_of(cues, b, True), int(cues.tokens.mask[b].nonzero()[-1, 0])
        rows, real = attention_by_hand(cues, b, [last])
        expected = rows[:, 0, [real.index(i) for i in image]]
        torch.testing.assert_close(found[b, :, : len(image)], expected, atol=1e-9, rtol=1e-9)


@given(st.floats(0.05, 0.95), PROMPTS, st.booleans(), st.integers(0, 2**31))
def test_evit_fuses_all_that_is_neither_attentive_nor_protected(ratio, prompts, left, seed):
    cues, config = prompt_cues(prompts, seed, left), EViTConfig(layers=(0,), prune_ratio=ratio)
    decision = config.decide(cues)
    for b in range(len(prompts)):
        image, held = slots_of(cues, b, True), held_by(cues, b)
        if not image:
            check(cues, decision, b, set(), {})
            continue
        rows, real = attention_by_hand(cues, b, image[:1])
        score = dict(zip(real, rows.sum(dim=(0, 1)).tolist(), strict=True))
        n, fused = len(image), config.merges(len(image))
        kept = kept_by_hand(image, score, n - fused - min(fused, 1), held)
        lost = sorted(set(image) - set(kept), key=lambda i: (-score[i], i))
        check(cues, decision, b, set(), dict.fromkeys(lost[1:], lost[0]) if lost else {})


@given(st.floats(0.05, 0.95), PROMPTS, st.booleans(), st.integers(0, 2**31))
def test_pooling_spares_what_is_protected(ratio, prompts, left, seed):
    cues, config = prompt_cues(prompts, seed, left), PoolingConfig(layers=(0,), merge_ratio=ratio)
    decision = config.decide(cues)
    for b in range(len(prompts)):
        image, held = slots_of(cues, b, True), held_by(cues, b)
        count, pairs = config.merges(len(image)), (len(image) - 1) // 2
        chosen = [k * pairs // count for k in range(count)]
        into = {image[2 * pair + 2]: image[2 * pair + 1] for pair in chosen}
        check(cues, decision, b, set(), {i: to for i, to in into.items() if not {i, to} & held})


@pytest.mark.parametrize("example", [e for es in EXAMPLES.values() for e in es[:1]], ids=lambda e: e.config.method)
def test_the_layout_of_vilt_is_one_of_many(example):
    """Every method: said as segments, with either [CLS] protected, text before image is reduced as it always was."""
    config = example.config
    reducers = [*config.reducers().values(), *config.learned({"fusion": 5, "vision": 5}).values()]
    for lengths in ([(7, 16)], [(4, 9)] * 3):
        cues = random_cues(lengths, 0, 3, one_stream=True)
        cues = replace(cues, tokens=replace(cues.tokens, streams=(cues.tokens.states.float(),)))
        tokens = cues.tokens
        slot = torch.arange(tokens.size.shape[1])
        segment, protected = (slot >= tokens.text_length).long(), (slot == 0) | (slot == tokens.text_length)
        rows = (x.expand_as(tokens.size) for x in (segment, protected))
        segments = Segments.of(*rows, tokens.mask, tokens.slots, (1, 1))
        said = replace(cues, tokens=replace(tokens, segments=segments))
        assert torch.equal(said.tokens.lengths, tokens.lengths) and torch.equal(said.image_mask, cues.image_mask)
        for reducer in reducers:
            if config.method == "pumer-released":
                with pytest.raises(InputError, match="method 'pumer'"):
                    reducer.decide(said)
                continue
            if config.method == "tome":  # never merges text with image where they interleave
                continue
            one, other = (
                torch.no_grad()(reducer.eval().decide if isinstance(reducer, torch.nn.Module) else reducer.decide)(c)
                for c in (cues, said)
            )
            for b in range(len(lengths)):
                assert groups(one, b, tokens.text_length) == groups_of_stream(said.tokens, other, b)


def groups_of_stream(tokens, decision, sample):
    """As `groups`, of a stream that says which token is what."""
    text, image = [], []
    goes = decision.destination[sample].tolist()
    for slot in decision.mask[sample].nonzero()[:, 0].tolist():
        first = int(decision.index[sample, slot])
        group = [first, *(i for i, to in enumerate(goes) if to == slot and i != first)]
        is_image = bool(tokens.segments.segment[sample, first] > 0)
        (image if is_image else text).append([i - tokens.text_length * is_image for i in group])
    return text, image


def test_every_method_takes_prompts():
    cues = prompt_cues([[(0, True), (1, False), (1, False), (2, False), (1, False), (0, True)]] * 2, 0, True)
    cues = replace(cues, tokens=replace(cues.tokens, streams=(cues.tokens.states.float(),)))
    for method in WITH_HEADS:
        config = EXAMPLES[method][0].config
        for reducer in [*config.reducers().values(), *config.learned({"fusion": 5, "vision": 5}).values()]:
            if method != "pumer-released":
                reduced = cues.tokens.reduce(reducer.decide(cues))
                assert reduced.lengths[:, 0].tolist() == [2, 2] and (reduced.lengths[:, 1] >= 1).all(), method


def test_a_learned_method_hides_image_tokens_of_a_prompt_while_it_trains():
    cues = prompt_cues([[(0, False), (1, True), (1, False), (0, False), (2, False), (1, False)]] * 40, 1, False)
    cues = replace(cues, tokens=replace(cues.tokens, streams=(cues.tokens.states.float(),)))
    predictor, *_ = EXAMPLES["dynamicvit"][0].config.learned({"fusion": 5}).values()
    decision = predictor.train().decide(cues)
    hidden = (cues.tokens.reduce(decision).bias - cues.bias)[:, 0, 0, :6].detach() < -1
    assert not hidden[:, [0, 1, 3]].any(), "text and what is protected"
    assert hidden[:, [2, 4, 5]].any(dim=0).all() and not hidden[:, [2, 4, 5]].all(dim=0).any()


ALL_KINDS = PuMerReducer(Step(layer=0, prune_ratio=0.3, merge_ratio=0.3, text_merge_ratio=0.2))
OF_DECODERS = [cls(layers=(0,), prune_ratio=0.4) for cls in (FastVConfig, DARTConfig, SparseVLMConfig)]


@pytest.mark.parametrize("reducer", [ALL_KINDS, *OF_DECODERS], ids=lambda reducer: type(reducer).__name__)
def test_prompts_compile_as_one_graph(reducer):
    """Which token is image is data: other prompts in the same shapes need no other graph."""
    causal = reducer in OF_DECODERS
    torch._dynamo.reset()

    def run(states, size, segment, protected, key, query):
        segments = Segments.of(segment, protected, size > 0, (8, 14), (4, 4), free_first=True)
        tokens = Tokens((states,), size, (None,), 8, lambda: segment, segments=segments)
        cues = Cues(tokens, key, query, size.log()[:, None, None], causal=causal)
        return tokens.reduce(reducer.decide(cues)).states

    compiled = torch.compile(run, fullgraph=True, backend="eager", dynamic=False)
    kinds = [
        [(0, True), *[(1, False)] * 9, *[(0, False)] * 6],
        [*[(1, True)] * 3, (0, False), *[(2, False)] * 8, (0, True)],
    ]
    for prompts in (kinds, kinds[::-1], [kinds[1], kinds[1] + kinds[0][:3]]):
        cues = prompt_cues(prompts, 5, True, spare=18 - max(map(len, prompts)), heads=4 if causal else 2)
        tokens = cues.tokens
        inputs = tokens.states, tokens.size, tokens.segments.segment, tokens.segments.protected, cues.key, cues.query
        with torch._dynamo.config.patch(error_on_recompile=True):
            torch.testing.assert_close(compiled(*inputs), run(*inputs))


def test_a_trace_tells_of_a_prompt():
    prompt = [(0, False), (1, False), (1, False), (0, True), (1, False), (1, False), (1, False), (0, False)]
    cues = prompt_cues([prompt, prompt[:5]], 2, True)
    step, trace = Step(layer=0, prune_ratio=0.3, merge_ratio=0.4, text_merge_ratio=0.4), Trace()
    trace.begin(cues.tokens, torch.full((2, 5, 2), -1), ())
    decision = PuMerReducer(step).decide(cues)
    trace.step(("fusion", 3), decision, cues.tokens.reduce(decision))
    (told,) = trace.forwards
    for b in range(2):
        pruned, into = pumer_by_hand(step, cues, b)
        assert {int(i) for i in (told.pruned_at[b] == 0).nonzero()[:, 0]} == pruned
        assert {int(i): int(told.merged_into[b, i]) for i in (told.merged_at[b] == 0).nonzero()[:, 0]} == into
        real = told.mask[b].nonzero()[:, 0].tolist()
        assert told.segment[b, real].tolist() == [kind for kind, _ in (prompt, prompt[:5])[b]]
        text, image = told.tokens_per_place[0]
        left = [i for i in real if i not in pruned and i not in into]
        assert int(image[b]) == sum(int(told.segment[b, i]) > 0 for i in left) and int(text[b] + image[b]) == len(left)
