"""The laws of the library, as checks that run on every backbone with every method, and on mutants that break them."""

import copy
import pickle
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import EXAMPLES, GRID, GRIDS, HEADS, TINY, WITH_HEADS, answer, max_examples
from torch import nn

import pumer
import pumer.backbones.vilt as vilt
import pumer.reducers.decisions as decisions
from pumer import PuMerConfig, Step, functional, tokens
from pumer.backbones import BACKBONES
from pumer.backbones.state import switched
from pumer.patching import reductions
from pumer.reducers.layered import ScoringConfig

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
STRONG = PuMerConfig(layers=(0, 1, 2), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3)

grid = pytest.mark.parametrize(("backbone", "example"), GRID, ids=tiny.label)
heads = pytest.mark.parametrize(("backbone", "head"), HEADS)


def test_every_backbone_is_in_the_grid():
    assert set(TINY) == set(BACKBONES), "add a builder to tests/tiny"
    for grid_ in (GRID, GRAPHS):
        assert {(backbone, example.config.method) for backbone, example in grid_} == set(product(BACKBONES, WITH_HEADS))


def test_reductions_matter_in_the_models_of_these_tests():
    """Logits spread, and a reduction changes them: otherwise nothing below would show anything."""
    for backbone, case in TINY.items():
        model, inputs = case.build(), case.batch(GRIDS)
        with torch.no_grad():
            before = answer(pumer.patch(model, pumer.NoReduction()), inputs)
            after = answer(pumer.patch(model, case.fit(STRONG)), inputs)
        assert 0.1 < before.std() < 10, backbone
        assert (before - after).abs().max() > 0.02, backbone


# ---------------------------------------------------------------- law 1: same answer in any batch


def check_same_in_any_batch(case, model, samples, head=None, dtype=torch.float64, **padding):
    """A sample alone equals the sample in a batch, whatever the others, their order and the padding."""
    model = model.to(dtype)
    orders = [list(range(len(samples))), list(reversed(range(len(samples))))]

    def run(chosen, **padding):
        with torch.no_grad():
            out = answer(model, tiny.to(case.collate(chosen, **padding), dtype))
        return [
            row[: len(sample.words)] if head in case.per_word else row for row, sample in zip(out, chosen, strict=True)
        ]

    alone = [run([sample])[0] for sample in samples]
    for order in orders:
        for size in ({}, padding):
            together = run([samples[i] for i in order], **size)
            for i, row in zip(order, together, strict=True):
                difference = float((row - alone[i]).abs().max())
                assert difference <= TOLERANCE[dtype], f"sample {i} of {order} with padding {size}: {difference}"


RATIO = st.one_of(st.just(0.0), st.floats(0.0, 0.95))
SHAPES = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=3)
PADDING = st.fixed_dictionaries({"text": st.integers(0, 16), "rows": st.integers(0, 9), "columns": st.integers(0, 9)})


@st.composite
def schedules(draw, layers=3):
    """Any schedule of PuMer's reducer, in a vision encoder too."""
    chosen = draw(st.lists(st.integers(0, layers - 1), min_size=1, max_size=layers, unique=True))
    steps = [
        Step(layer=n, prune_ratio=draw(RATIO), merge_ratio=draw(RATIO), text_merge_ratio=draw(RATIO)) for n in chosen
    ]
    seeing = draw(st.lists(st.integers(0, layers - 1), max_size=layers, unique=True))
    steps += [Step(stack="vision", layer=n, merge_ratio=draw(RATIO)) for n in seeing]
    return PuMerConfig(schedule=tuple(steps), proportional_attention=draw(st.booleans()))


@pytest.mark.parametrize("backbone", TINY)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@max_examples(25)
@given(schedules(), SHAPES, PADDING, st.integers(0, 1000))
def test_law_1_any_schedule(backbone, dtype, config, shapes, padding, seed):
    case = TINY[backbone]
    samples = [case.sample(seed + i, *shape) for i, shape in enumerate(shapes)]
    check_same_in_any_batch(case, pumer.patch(case.build(), case.fit(config)), samples, dtype=dtype, **padding)


@grid
def test_law_1_every_method(backbone, example):
    if not example.any_batch:
        pytest.skip("counts of the released code depend on padding")
    case = TINY[backbone]
    samples = [case.sample(i, *shape) for i, shape in enumerate(GRIDS)]
    model = pumer.patch(case.build(), example.config)
    check_same_in_any_batch(case, model, samples, text=14, rows=7, columns=8)


@heads
def test_law_1_every_head(backbone, head):
    case = TINY[backbone]
    images = 2 if head in case.two_images else 1
    samples = [case.sample(i, *shape, images=images) for i, shape in enumerate(GRIDS)]
    model = pumer.patch(case.build(head), case.fit(STRONG))
    check_same_in_any_batch(case, model, samples, head, text=13, rows=8, columns=7)


# ---------------------------------------------------------------- law 2: static shapes

SHALLOW = 2


def first_configs(layers):
    """The first config of each method, in so many layers: making a graph takes seconds, with each layer more."""
    firsts = [first for first, *_ in EXAMPLES.values()]
    return tiny.grid(
        [replace(first, config=tiny.moved(first.config, lambda _, layer: min(layer, layers - 1))) for first in firsts]
    )


def in_turn(configs, first=0):
    """Each method in one backbone, from one method to the next another one; the others are slow tests."""
    methods, backbones = list(EXAMPLES), list(TINY)
    turns = [backbones[(methods.index(e.config.method) + first) % len(backbones)] for _, e in configs]
    marks = [[] if b == turn else [pytest.mark.slow] for (b, _), turn in zip(configs, turns, strict=True)]
    return [pytest.param(*case, marks=mark) for case, mark in zip(configs, marks, strict=True)]


def slow_alike(configs):
    """Methods that are a score and nothing else have similar graphs: beyond the first backbone they are slow tests."""
    first = next(iter(TINY))
    alike = [b != first and getattr(type(e.config), "decide", None) is ScoringConfig.decide for b, e in configs]
    return [pytest.param(*case, marks=[pytest.mark.slow] * slow) for case, slow in zip(configs, alike, strict=True)]


one_quick = pytest.mark.parametrize(
    "backbone", [pytest.param(name, marks=[pytest.mark.slow] * bool(n)) for n, name in enumerate(TINY)]
)
"""The first backbone, and the others by the slow tests."""

GRAPHS = first_configs(SHALLOW)
IN_VISION = tiny.grid([other for _, *others in EXAMPLES.values() for other in others if tiny.in_vision(other)])

no_recompilation = torch._dynamo.config.patch(error_on_recompile=True)


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check_compiled(case, model, backend, tolerance=1e-5):
    """One graph; equal to eager; other real lengths in the same shapes need no second one."""
    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=False)
    with torch.no_grad():
        for shapes in (GRIDS, ((10, 6, 2), (1, 1, 6), (7, 6, 6)), ((2, 5, 5), (10, 6, 6), (9, 2, 6))):
            inputs = case.batch(shapes, seed=len(str(shapes)))
            expected = answer(model, inputs)
            with no_recompilation:
                torch.testing.assert_close(answer(compiled, inputs), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("backbone", "example"), in_turn(GRAPHS) + slow_alike(IN_VISION), ids=tiny.label)
def test_law_2_compile(backbone, example, fresh_dynamo):
    case = TINY[backbone]
    model = case.build() if tiny.in_vision(example) else case.build(layers=SHALLOW)
    check_compiled(case, pumer.patch(model, example.config), backend="eager")


@one_quick
def test_law_2_compile_with_another_text_length(backbone, fresh_dynamo):
    """Where a length changes, torch makes it a symbol: the tables are for numbers all the same."""
    case = TINY[backbone]
    model = pumer.patch(case.build(layers=1), PuMerConfig(layers=(0,), prune_ratio=0.2, text_merge_ratio=0.3))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for words in (10, 13, 15):
            inputs = case.batch(GRIDS, text=words)
            torch.testing.assert_close(answer(compiled, inputs), answer(model, inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.slow  # tests/compiling has one of the quick tests
@pytest.mark.parametrize("backbone", TINY)
def test_law_2_inductor(backbone, fresh_dynamo):
    case = TINY[backbone]
    model = pumer.patch(case.build(layers=1), PuMerConfig(layers=(0,), prune_ratio=0.2, merge_ratio=0.3))
    check_compiled(case, model, backend="inductor")


@pytest.mark.parametrize(("backbone", "example"), in_turn(first_configs(1), first=1), ids=tiny.label)
def test_law_2_export_with_dynamic_batch(backbone, example, fresh_dynamo):
    case = TINY[backbone]
    model, inputs = pumer.patch(case.build(layers=1), example.config), case.batch(GRIDS)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(model, (), inputs, dynamic_shapes={name: {0: batch} for name in inputs}).module()
    with torch.no_grad():
        for size in (3, 2, 5):
            inputs = case.batch([GRIDS[0], *GRIDS, GRIDS[0]][:size], seed=size)
            torch.testing.assert_close(answer(exported, inputs), answer(model, inputs), atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- law 3: exact off switch


def classes(model):
    return [type(module) for module in model.modules()]


@grid
def test_law_3_nothing_is_added_and_everything_restored(backbone, example):
    case = TINY[backbone]
    model, other, inputs = case.build(), case.build(seed=1), case.batch(GRIDS)
    before, keys, attributes = classes(model), list(model.state_dict()), [set(vars(m)) for m in model.modules()]
    torch.manual_seed(5)
    plain = answer(model, inputs)
    assert pumer.patch(model, example.config) is model
    added = set(model.state_dict()) - set(keys)
    learned = example.config.learned(BACKBONES[backbone].widths(case.root(model)))
    assert bool(added) == bool(learned), "only a method that learns adds weights"
    assert all(".reducer." in f".{name}" for name in added)
    assert [name for name in model.state_dict() if name not in added] == keys
    own = [module for name, module in model.named_modules() if "reducer" not in name.split(".")]
    assert [type(m).__name__ for m in own] == [c.__name__ for c in before], "save_pretrained writes class names"
    assert classes(other) == before, "another model was touched"
    answer(model, inputs)
    assert pumer.unpatch(model) is model
    assert classes(model) == before
    assert [set(vars(m)) for m in model.modules()] == attributes
    torch.manual_seed(5)
    assert torch.equal(answer(model, inputs), plain)


@grid
def test_law_3_patching_twice_is_patching_once(backbone, example):
    case = TINY[backbone]
    inputs = case.batch(GRIDS)
    once = pumer.patch(case.build(), example.config)
    twice = pumer.patch(pumer.patch(pumer.patch(case.build(), case.fit(STRONG)), example.config), example.config)
    assert classes(once) == classes(twice)
    assert torch.equal(answer(once, inputs), answer(twice, inputs))


@grid
def test_law_3_nothing_removed_equals_transformers(backbone, example):
    if example.off is None:
        pytest.skip("the method cannot be switched off by its ratios")
    case = TINY[backbone]
    model, inputs = case.build(), case.batch(GRIDS)
    plain = answer(model, inputs)  # shuffles its patches: the same up to rounding, for no position depends on order
    pumer.patch(model, example.off)
    torch.testing.assert_close(answer(model, inputs), plain, atol=1e-5, rtol=0)
    with pumer.disabled(pumer.patch(model, example.config)):
        torch.testing.assert_close(answer(model, inputs), plain, atol=1e-5, rtol=0)


@grid
def test_law_3_copies_are_independent(backbone, example):
    case = TINY[backbone]
    model, inputs = pumer.patch(case.build(), example.config), case.batch(GRIDS)
    expected = answer(model, inputs)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(answer(twin, inputs), expected)
        assert pumer.reduction(twin) == example.config
        pumer.unpatch(twin)
        assert pumer.reduction(model) == example.config
        assert torch.equal(answer(model, inputs), expected)


# ---------------------------------------------------------------- law 4: no full attention matrix


@grid
def test_law_4_no_square_matrix_of_tokens(backbone, example):
    if not example.fused:
        pytest.skip("the method has an attention of its own")
    case = TINY[backbone]
    # 13 words: with 10, all tokens that EViT leaves are as many as the image had
    model, inputs = pumer.patch(case.build(), example.config), case.batch(GRIDS, text=13)
    words, image = inputs["input_ids"].shape[1], 1 + GRIDS[0][1] * GRIDS[0][2]
    with torch.no_grad(), tiny.Shapes() as shapes:
        model(**inputs)
    tokens = {image, words + image}
    assert any(tokens & set(shape) for shape in shapes.seen)
    assert not [shape for shape in shapes.seen if sum(size in tokens for size in shape) > 1]


# ---------------------------------------------------------------- laws 5 and 6: one decision, every token accounted for


@dataclass
class Notes:
    """Records the decisions themselves, to be replayed by hand."""

    start: list[tokens.Tokens] = field(default_factory=list)
    owner: list[torch.Tensor] = field(default_factory=list)  # slot of each input token before anything was reduced
    steps: list[list[tuple[tuple[str, int], tokens.Decision, tokens.Tokens | None]]] = field(default_factory=list)

    def begin(self, stream, cell, history):
        self.start.append(stream)
        owner, T = stream.source.clone(), stream.text_length
        if history:
            owner[:, T:] = torch.arange(T, owner.shape[1])
        self.owner.append(owner)
        self.steps.append([(place, decision.after_text(stream.mask[:, :T]), None) for place, decision in history])

    def step(self, place, decision, stream):
        if place[0] == "fusion":
            self.steps[-1].append((place, decision, stream))


@contextmanager
def noted(model):
    notes = Notes()
    with switched(reductions(model), "recording", notes):
        yield notes


def check_states_follow_the_decisions(case, model, inputs, example):
    """With silent layers, each slot holds the average of what was put into it, at every layer."""
    case.silence(model)
    with torch.no_grad(), noted(model) as notes:
        output = case.root(model)(**inputs, output_hidden_states=True)
    states, start = case.states(output), notes.start[0]
    torch.testing.assert_close(states[0], start.states)
    after = {n // case.stride: (decision, stream) for (stack, n), decision, stream in notes.steps[0] if stream}
    size, stream = start.size, start
    for layer in range(len(states) - 1):
        if layer not in after:
            torch.testing.assert_close(states[layer + 1], states[layer])
            continue
        decision, stream = after[layer]
        weight, destination = decision.weight if decision.weight is not None else size, decision.destination
        for b in range(len(size)):
            for slot in stream.mask[b].nonzero()[:, 0].tolist():
                held = (destination[b] == slot).nonzero()[:, 0]
                mean = (states[layer][b, held] * weight[b, held, None]).sum(0) / weight[b, held].sum()
                torch.testing.assert_close(states[layer + 1][b, slot], mean, atol=1e-5, rtol=1e-4)
        size = stream.size
        if example.sizes:
            check_sources(start, stream, states[0], states[layer + 1], example.apart)


def check_sources(start, stream, before, now, apart):
    """The source map, sizes, mask, bias and states of a stream agree, with the stream at the start as the measure."""
    source, mask, bias, first = stream.source, stream.mask, stream.bias, start.source
    for b in range(len(stream.size)):
        for slot in range(mask.shape[1]):
            owned = (source[b] == slot).nonzero()[:, 0]
            held = first[b, owned]  # the slot each of them stood at when the stream was made
            assert float(stream.size[b, slot]) == len(held)
            assert bool(mask[b, slot]) == (len(held) > 0)
            assert bool(torch.isinf(bias[b, 0, 0, slot])) == (len(held) == 0)
            if len(held):
                torch.testing.assert_close(now[b, slot], before[b, held].mean(dim=0), atol=1e-5, rtol=1e-4)
                mixed = (held < start.text_length) != (slot < stream.text_length)
                assert not apart or not mixed.any(), "text and image never mix"
        real = int(mask[b, : stream.text_length].sum())
        assert mask[b, :real].all(), "the text block is compact"
        assert stream.lengths[b].tolist() == [real, int(mask[b].sum()) - real], "counted as they are"


@grid
def test_law_5_states_sizes_masks_and_sources_agree(backbone, example):
    case = TINY[backbone]
    model = pumer.patch(case.build(), example.config)
    check_states_follow_the_decisions(case, model, case.batch(GRIDS, text=12, columns=7), example)


@pytest.mark.parametrize("backbone", TINY)
@max_examples(15)
@given(schedules(), SHAPES, PADDING)
def test_law_5_any_schedule(backbone, config, shapes, padding):
    case = TINY[backbone]
    model = pumer.patch(case.build(), case.fit(config))
    check_states_follow_the_decisions(case, model, case.batch(shapes, **padding), tiny.Example(config))


@pytest.mark.parametrize("backbone", TINY)
def test_law_5_holey_and_left_padded_text(backbone):
    case = TINY[backbone]
    inputs = case.batch(GRIDS)
    inputs["attention_mask"] = torch.tensor([[0, 1, 1, 0, 1, 1, 1, 0, 1, 1], [0] * 4 + [1] * 6, [1, 0] * 5])
    config = case.fit(STRONG)
    check_states_follow_the_decisions(case, pumer.patch(case.build(), config), inputs, tiny.Example(config))


def replay(notes, run):
    """What became of every input token, from the decisions alone: a plain loop."""
    owner, fates = notes.owner[run], []
    decided = [(decision.destination.tolist(), decision.index.tolist()) for _, decision, _ in notes.steps[run]]
    for b in range(len(owner)):
        where = {i: int(slot) for i, slot in enumerate(owner[b]) if slot >= 0}
        anchor = {slot: i for i, slot in where.items()}  # the token that stands in a slot
        fate = {i: {"pruned": -1, "merged": -1, "into": -1} for i in where}
        for here, (destination, index) in enumerate(decided):
            moved, anchors = {}, {}
            for slot, i in anchor.items():
                new = destination[b][slot]
                if new >= 0 and index[b][new] == slot:
                    anchors[new] = i
            for i, slot in where.items():
                new = destination[b][slot]
                if new < 0:
                    fate[i]["pruned"] = here
                    continue
                if index[b][new] != slot and fate[i]["merged"] < 0:
                    fate[i].update(merged=here, into=anchors.get(new, -1))
                moved[i] = new
            where, anchor = moved, anchors
        fates.append((where, fate))
    return fates


def check_every_token_is_accounted_for(model, inputs, example, runs=1):
    """The trace tells of each token what a replay of the decisions tells; sizes add up to the input."""
    with torch.no_grad(), noted(model) as notes:
        model(**inputs)
    with torch.no_grad(), pumer.trace(model) as trace:
        model(**inputs)
    assert len(trace.forwards) == len(notes.start) == runs
    for run, told in enumerate(trace.forwards):
        assert told.places == tuple(place for place, _, _ in notes.steps[run])
        for b, (where, fate) in enumerate(replay(notes, run)):
            assert told.mask[b].nonzero()[:, 0].tolist() == sorted(fate)
            for i in range(told.mask.shape[1]):
                expected = fate.get(i, {"pruned": -1, "merged": -1, "into": -1})
                assert int(told.owner[b, i]) == where.get(i, -1)
                assert int(told.pruned_at[b, i]) == expected["pruned"]
                assert int(told.merged_at[b, i]) == expected["merged"]
                assert int(told.merged_into[b, i]) == expected["into"]
                check_description(told.describe(b, i), told, b, i)
            if notes.steps[run] and notes.steps[run][-1][2]:
                assert torch.equal(told.size[b], notes.steps[run][-1][2].size[b])
            held = [sum(1 for slot in where.values() if slot == k) for k in range(told.size.shape[1])]
            assert told.size[b].tolist() == held
            pruned = int((told.pruned_at[b] >= 0).sum())
            assert told.size[b].sum() + pruned == told.mask[b].sum(), "kept plus pruned is the input"
            if not example.cls_stays:
                continue
            real = int((told.size[b] > 0).sum())
            for cls in (0, told.text_tokens):
                if told.mask[b, cls]:
                    assert told.pruned_at[b, cls] == told.merged_at[b, cls] == -1
            if told.tokens_per_place:
                text, image = told.tokens_per_place[-1]
                assert int(text[b] + image[b]) == real
            check_counts(example.config, told, b)


def check_description(line, told, b, i):
    if not told.mask[b, i]:
        assert line == "padding"
    elif told.merged_at[b, i] < 0 and told.pruned_at[b, i] < 0:
        assert line == "kept"
    else:
        stack, layer = told.places[max(int(told.merged_at[b, i]), int(told.pruned_at[b, i]))]
        assert line.endswith(f"at {'vision ' if stack == 'vision' else ''}layer {layer}"), line


def check_counts(config, told, b):
    """Counts follow from the sample's own length and the config alone."""
    T = told.text_tokens
    text, image = int(told.mask[b, :T].sum()), int(told.mask[b, T:].sum())
    steps = {(step.stack, step.layer): step for step in getattr(config, "schedule", ())}
    for place, (words, patches) in zip(told.places, told.tokens_per_place, strict=True):
        step = steps.get(place, config)
        text = step.text_left(text) if place in steps else text  # the other methods leave the words alone
        image = (step.left if hasattr(step, "left") else step.kept)(image)
        assert (int(words[b]), int(patches[b])) == (text, image)


@grid
def test_law_6_every_method(backbone, example):
    case = TINY[backbone]
    inputs = case.batch(GRIDS, text=12, rows=7)
    check_every_token_is_accounted_for(pumer.patch(case.build(), example.config), inputs, example)


@pytest.mark.parametrize("backbone", TINY)
@max_examples(15)
@given(schedules(), SHAPES, PADDING)
def test_law_6_any_schedule(backbone, config, shapes, padding):
    case = TINY[backbone]
    inputs = case.batch(shapes, **padding)
    config = case.fit(config)
    check_every_token_is_accounted_for(pumer.patch(case.build(), config), inputs, tiny.Example(config))


@pytest.mark.parametrize(("backbone", "head"), [(b, h) for b, h in HEADS if h in TINY[b].two_images])
def test_law_6_one_trace_per_image(backbone, head):
    case = TINY[backbone]
    config = case.fit(STRONG)
    model, inputs = pumer.patch(case.build(head), config), case.batch(GRIDS, head)
    check_every_token_is_accounted_for(model, inputs, tiny.Example(config), runs=2)


# ---------------------------------------------------------------- law 8: deterministic


def check_deterministic(model, inputs):
    """The same input gives the same bits, also in training mode without dropout; while it learns, by the same seed."""
    first = answer(model, inputs)
    assert torch.equal(answer(model, inputs), first)
    try:
        with torch.no_grad():
            torch.testing.assert_close(answer(model.train(), inputs), first, atol=0, rtol=0)
        torch.manual_seed(3)
        learning = answer(model, inputs)
        torch.manual_seed(3)
        assert torch.equal(answer(model, inputs), learning)
    finally:
        model.eval()


@grid
def test_law_8_same_bits(backbone, example):
    case = TINY[backbone]
    model = case.build(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    check_deterministic(pumer.patch(model, example.config), case.batch(GRIDS, columns=8))


@pytest.mark.gpu
@grid
def test_law_8_same_bits_on_a_gpu(backbone, example):
    case = TINY[backbone]
    model = case.build(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).cuda()
    inputs = {name: x.cuda() for name, x in case.batch(GRIDS, columns=8).items()}
    check_deterministic(pumer.patch(model, example.config), inputs)


# ---------------------------------------------------------------- mutants: what breaks a law must be seen


original_reduce, original_trace = tokens.Tokens.reduce, tokens.Decision.trace
original_bias, original_counts = tokens.attention_bias, decisions.counts


def uncompacted(keep, length):
    """Parity by position: padding between the rows of a padded picture is left where it is."""
    return torch.arange(length).expand(len(keep), -1), keep[:, :length]


def without(outside, first):
    """No token is outside, of every other rank."""
    outside = outside.clone()
    outside[:, first::2] = False
    return outside


def padding_proposes(features, outside, spared):
    """Merging that takes padding for tokens that may be merged away."""
    return functional.propose(features, without(outside, 0), spared)


def padding_receives(features, outside, spared):
    """Merging that takes padding for tokens that others may be merged into."""
    return functional.propose(features, without(outside, 1), spared)


def padding_matches(features, outside, spared):
    """Merging that takes padding for tokens."""
    return functional.propose(features, torch.zeros_like(outside), spared)


def count_padding(found, lengths):
    """Counts from the buffer instead of the sample's own length."""
    return original_counts(found, torch.tensor([found.text, found.image]).expand_as(lengths))


def all_rows(text_rows, words):
    """Saliency that padded words have a say in."""
    return functional.asked_for(text_rows, torch.ones_like(words))


def unstable(score, dropped):
    """Free order of what is kept."""
    order = functional.kept_first(score, dropped)
    fixed = (score == torch.inf) | dropped  # words and [CLS], which stand where they stood, and what is gone
    key = torch.arange(score.shape[1]) + torch.rand(score.shape).masked_fill(fixed, 0) * score.shape[1]
    return order.gather(1, key.argsort(dim=1))


def free_slots_seen(mask, dtype=torch.float32):
    """Attention that sees free slots."""
    return original_bias(torch.ones_like(mask), dtype)


def free_slots_attended(self, decision):
    """The same, where parts count."""
    reduced = original_reduce(self, decision)
    return replace(reduced, biases=tuple(bias.clamp(min=0) for bias in reduced.biases))


def sizes_forgotten(self, decision):
    """Every token counts once again after each reduction."""
    reduced = original_reduce(self, decision)
    return replace(reduced, size=reduced.mask.float(), biases=tuple(bias.clamp(max=0) for bias in reduced.biases))


def plain_mean(self, decision):
    """Averages that forget what a token already holds."""
    return original_reduce(self, replace(decision, weight=torch.ones_like(self.size)))


def sources_lost(self, owner):
    """Merged tokens are reported as pruned."""
    merged = self.moves % 2 == 1
    return torch.where(merged.gather(1, owner.clamp(min=0)), -1, original_trace(self, owner))


def law_1(case, model):
    check_same_in_any_batch(case, model, [case.sample(i, *shape) for i, shape in enumerate(GRIDS)], text=12, columns=7)


def law_5(case, model):
    check_states_follow_the_decisions(case, model, case.batch(GRIDS), tiny.Example(STRONG))


def law_6(case, model):
    config = pumer.reduction(model)
    check_every_token_is_accounted_for(model, case.batch(GRIDS, text=12), tiny.Example(config))


def law_8(case, model):
    check_deterministic(model, case.batch(GRIDS))


@dataclass(frozen=True)
class Mutant:
    """A change for the worse, and the law that must notice."""

    law: Callable[[tiny.Tiny, nn.Module], None]
    place: object
    name: str
    change: Callable
    config: PuMerConfig = STRONG
    backbones: tuple[str, ...] = tuple(TINY)


PADDED_IMAGES = ("vilt",)
"""METER's images all have one size: a mutant that only padded images show cannot be seen there."""

MUTANTS = [
    Mutant(law_1, vilt, "compact", uncompacted, PuMerConfig(layers=(0,), merge_ratio=0.4), PADDED_IMAGES),
    Mutant(law_1, decisions, "propose", padding_matches),
    Mutant(law_1, decisions, "propose", padding_proposes),
    Mutant(law_1, decisions, "propose", padding_receives),
    Mutant(law_1, decisions, "propose", padding_matches, PuMerConfig(layers=(0,), text_merge_ratio=0.4)),
    Mutant(law_1, decisions, "counts", count_padding),
    Mutant(law_1, decisions, "counts", count_padding, PuMerConfig(layers=(0,), prune_ratio=0.4), PADDED_IMAGES),
    Mutant(law_1, decisions, "asked_for", all_rows, PuMerConfig(layers=(0,), prune_ratio=0.4)),
    Mutant(law_1, tokens.Tokens, "reduce", free_slots_attended),
    Mutant(law_1, tokens.tokens, "attention_bias", free_slots_seen, replace(STRONG, proportional_attention=False)),
    Mutant(law_1, decisions, "kept_first", unstable),
    Mutant(law_5, tokens.Tokens, "reduce", sizes_forgotten),
    Mutant(law_5, tokens.Tokens, "reduce", plain_mean),
    Mutant(law_5, tokens.Decision, "trace", sources_lost),
    Mutant(law_6, tokens.Tokens, "reduce", sizes_forgotten),
    Mutant(law_6, decisions, "counts", count_padding),
    Mutant(law_8, decisions, "kept_first", unstable),
]


SEEN = [(backbone, mutant) for mutant in MUTANTS for backbone in mutant.backbones]


def named(value):
    """How pytest calls a mutant."""
    return f"{value.law.__name__}-{value.change.__name__}" if isinstance(value, Mutant) else value


@pytest.mark.parametrize(("backbone", "mutant"), SEEN, ids=named)
def test_mutants_are_seen(backbone, mutant, monkeypatch):
    case = TINY[backbone]
    config = case.fit(mutant.config)
    mutant.law(case, pumer.patch(case.build(), config))
    monkeypatch.setattr(mutant.place, mutant.name, mutant.change)
    with pytest.raises(AssertionError):
        mutant.law(case, pumer.patch(case.build(), config))


def test_released_counts_depend_on_padding():
    """The released rules break law 1, which is why they are not the default; the check notices."""
    case, (example, *_) = TINY["vilt"], EXAMPLES["pumer-released"]
    with pytest.raises(AssertionError):
        law_1(case, pumer.patch(case.build(), example.config))
