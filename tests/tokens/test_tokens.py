"""One decision, applied to every per-token tensor: against a plain Python loop over one example."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pumer.functional import gather_tokens
from pumer.tokens import GONE, Decision, Tokens, attention_bias


@st.composite
def choices(draw):
    """Per sample: input slots that stay, in any order, and which of the others are merged into which of them."""
    slots, samples = draw(st.integers(2, 10)), []
    for _ in range(draw(st.integers(1, 3))):
        real = draw(st.integers(1, slots))
        order = draw(st.permutations(range(real)))
        kept = draw(st.integers(1, real))
        stays, gone = order[:kept], order[kept:]
        merges = {source: draw(st.sampled_from(stays)) for source in gone if draw(st.booleans())}
        samples.append((real, stays, merges))
    spare = draw(st.integers(0, 3))
    return slots, samples, spare


def decided(index, mask, source, target, valid, tokens):
    """A decision about one block, counted as image, from what stays and what is merged.

    Args:
        index: (B, K) input slots that stay, in output order.
        mask: (B, K) bool, False for free output slots, which are the last ones.
        source: (B, M) input slots merged away.
        target: (B, M) input slots that receive them; each must be in `index`.
        valid: (B, M) bool, False for merges that do not take place.
        tokens: N, the number of input slots.
    """
    code = torch.full((index.shape[0], tokens + 1), GONE)  # what does not take place writes into the last one
    slots = 2 * torch.arange(index.shape[1])
    code = code.scatter(1, torch.where(mask, index, tokens), slots.expand_as(index))
    into = code.gather(1, torch.where(valid, target, index[:, :1])) + 1
    code = code.scatter(1, torch.where(valid, source, tokens), into)
    return Decision(code[:, :tokens], torch.stack([0 * mask.sum(dim=1), mask.sum(dim=1)], 1), (0, index.shape[1]))


def side_by_side(text, image):
    """One decision about text and image from one about each, both made as if about an image."""
    kept = text.slots[1]
    moved = torch.where(image.code < GONE, image.code + 2 * kept, GONE)
    lengths = torch.stack([text.lengths[:, 1], image.lengths[:, 1]], dim=1)
    return Decision(torch.cat([text.code, moved], dim=1), lengths, (kept, image.slots[1]))


def averaged(decision, x, weight):
    """States as `Tokens.reduce` averages them."""
    return torch.bmm(decision.shares(weight)[0].to(x.dtype), x)


def build(slots, samples, spare):
    """The decision, and the mask ``(B, N)`` of real input slots."""
    K = min(max(len(stays) for _, stays, _ in samples) + spare, slots)
    M = max(len(merges) for _, _, merges in samples) + spare
    index, mask = torch.zeros(len(samples), K, dtype=torch.int64), torch.zeros(len(samples), K, dtype=torch.bool)
    source, target = torch.zeros(2, len(samples), M, dtype=torch.int64)
    valid, real = torch.zeros(len(samples), M, dtype=torch.bool), torch.zeros(len(samples), slots, dtype=torch.bool)
    for b, (n, stays, merges) in enumerate(samples):
        index[b, : len(stays)], mask[b, : len(stays)] = torch.tensor(stays), True
        for m, (s, t) in enumerate(merges.items()):
            source[b, m], target[b, m], valid[b, m] = s, t, True
        real[b, :n] = True
    return decided(index, mask, source, target, valid, slots), real


@given(choices(), st.booleans(), st.integers(0, 2**31))
def test_decision_against_a_loop(choice, weighted, seed):
    slots, samples, _ = choice
    decision, real = build(*choice)
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(len(samples), slots, 3, generator=random, dtype=torch.float64)
    size = torch.randint(1, 5, (len(samples), slots), generator=random).float() * real
    weight = size if weighted else torch.ones_like(size)
    states, sizes, picked = averaged(decision, x, weight), decision.total(size), gather_tokens(size, decision.index)
    owner = torch.where(real, torch.arange(slots), -1)
    traced = decision.trace(owner)
    for b, (n, stays, merges) in enumerate(samples):
        for k, stay in enumerate(stays):
            group = [stay, *(source for source, target in merges.items() if target == stay)]
            whole = sum(float(weight[b, i]) for i in group)
            mean = sum(x[b, i] * float(weight[b, i]) / whole for i in group)
            torch.testing.assert_close(states[b, k], mean, atol=1e-6, rtol=1e-5)
            if len(group) == 1:
                assert torch.equal(states[b, k], x[b, stay]), "copied bit for bit"
            assert float(sizes[b, k]) == sum(float(size[b, i]) for i in group)
            assert float(picked[b, k]) == float(size[b, stay])
        free = slice(len(stays), None)
        assert not states[b, free].any() and not sizes[b, free].any() and not decision.mask[b, free].any()
        for i in range(slots):
            home = merges.get(i, i)
            expected = stays.index(home) if i < n and home in stays else -1
            assert int(decision.destination[b, i]) == expected
            assert int(traced[b, i]) == expected
            assert int(decision.code[b, i]) == (GONE if expected < 0 else 2 * expected + (home != i))


@given(choices(), st.lists(st.integers(0, 4), min_size=3, max_size=3), st.booleans())
def test_a_decision_about_the_image_becomes_one_about_both(image, words, proportional):
    """The text stays in its slots; odd codes stay odd, and what is gone stays gone."""
    decision, _ = build(*image)
    text = torch.arange(4) < torch.tensor(words[: len(image[1])])[:, None]
    both = replace(decision, proportional=proportional).after_text(text)
    assert both.proportional == proportional and both.slots == (4, decision.slots[1])
    for b in range(len(text)):
        assert both.code[b, :4].tolist() == [2 * i if i < words[b] else GONE for i in range(4)]
        shifted = [GONE if code == GONE else code + 8 for code in decision.code[b].tolist()]
        assert both.code[b, 4:].tolist() == shifted
        assert both.lengths[b].tolist() == [words[b], int(decision.mask[b].sum())]
        assert both.mask[b].tolist() == [*text[b].tolist(), *decision.mask[b].tolist()]


def test_the_text_before_an_image_that_stays_is_written_out():
    still = replace(Decision(None, torch.tensor([[0, 2]]), (0, 3)), bias=torch.zeros(1, 1, 1, 3))
    both = still.after_text(torch.tensor([[True, False]]))
    assert both.code.tolist() == [[0, GONE, 4, 6, GONE]]
    assert both.bias is None, "which has no entries for the text"


def test_codes_of_the_kernels_are_read_like_any_other():
    decision = build(5, [(4, [2, 0], {1: 2})], 1)[0]
    narrow = replace(decision, code=decision.code.int())
    x, size = torch.randn(1, 5, 3), torch.rand(1, 5) + 1
    assert narrow.destination.dtype == narrow.index.dtype == torch.int64
    assert narrow.destination.tolist() == [[1, 0, 0, -1, -1]] and torch.equal(narrow.index, decision.index)
    assert torch.equal(averaged(narrow, x, size), averaged(decision, x, size))
    owner = torch.tensor([[4, 1, -1]])
    assert narrow.trace(owner).tolist() == decision.trace(owner).tolist() == [[-1, 0, -1]]


@given(st.integers(0, 4), st.integers(1, 5), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1))
def test_a_decision_without_code_leaves_every_token_in_its_slot(T, V, lengths):
    lengths = torch.tensor([(min(t, T), min(v, V)) for t, v in lengths])
    decision = Decision(None, lengths, (T, V))
    for b, (words, patches) in enumerate(lengths.tolist()):
        real = [*range(words), *range(T, T + patches)]
        assert decision.mask[b].nonzero()[:, 0].tolist() == real
        assert decision.destination[b].tolist() == [i if i in real else -1 for i in range(T + V)]
        assert decision.moves[b].tolist() == [2 * i if i in real else GONE for i in range(T + V)]
    x, size = torch.randn(len(lengths), T + V, 2), decision.mask.float()
    assert torch.equal(averaged(decision, x, size), x * size[:, :, None])
    assert torch.equal(decision.total(size), size)


@pytest.mark.parametrize("streams", [1, 2])
def test_tokens_stay_as_they_are_where_nothing_moves(streams):
    states, size = torch.randn(1, 5, 2), torch.tensor([[1.0, 0.0, 1.0, 3.0, 0.0]])
    bias = size.log()[:, None, None]
    parts, biases = (states.split([2, 3], 1), bias.split([2, 3], -1)) if streams == 2 else ((states,), (bias,))
    tokens = Tokens(parts, size, biases, 2, lambda: torch.tensor([[0, -1, 2, 3, 3, 3]]))
    still = Decision(None, tokens.lengths, tokens.slots)
    reduced = tokens.reduce(still)
    assert reduced.streams is tokens.streams and reduced.size is size and reduced.biases is tokens.biases
    assert reduced.text_length == 2 and reduced.lengths.tolist() == [[1, 2]]
    assert reduced.source.tolist() == [[0, -1, 2, 3, 3, 3]]
    hidden = torch.arange(5.0).view(1, 1, 1, 5)
    reduced = tokens.reduce(replace(still, bias=hidden))
    assert torch.equal(reduced.bias, hidden) and [x.shape[1] for x in reduced.streams] == [
        x.shape[-1] for x in reduced.biases
    ]


def test_several_sources_into_one_target_weigh_by_size():
    index, mask = torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool)
    merged = torch.tensor([[2, 3]])
    decision = decided(index, mask, merged, torch.tensor([[1, 1]]), torch.ones(1, 2, dtype=torch.bool), 4)
    x, size = torch.tensor([[[7.0], [1.0], [2.0], [4.0]]]), torch.tensor([[1.0, 1.0, 2.0, 5.0]])
    torch.testing.assert_close(averaged(decision, x, size), torch.tensor([[[7.0], [(1 + 4 + 20) / 8]]]))
    torch.testing.assert_close(averaged(decision, x, torch.ones_like(size)), torch.tensor([[[7.0], [7 / 3]]]))
    assert decision.total(size).tolist() == [[1.0, 8.0]]
    assert decision.destination.tolist() == [[0, 1, 1, 1]]


def test_owners_chain_over_two_reductions():
    everything = torch.ones(1, 3, dtype=torch.bool)
    # 4 slots: 3 merges into 1, 0 is pruned; then the new slots 0 1 (old 1 2) become one
    first = decided(
        torch.tensor([[1, 2]]), everything[:, :2], torch.tensor([[3]]), torch.tensor([[1]]), everything[:, :1], 4
    )
    second = decided(
        torch.tensor([[1]]), everything[:, :1], torch.tensor([[0]]), torch.tensor([[1]]), everything[:, :1], 2
    )
    owner = second.trace(first.trace(torch.tensor([[0, 1, 2, 3]])))
    assert owner.tolist() == [[-1, 0, 0, 0]]
    assert second.total(first.total(torch.ones(1, 4))).tolist() == [[3.0]]


@given(choices(), choices(), st.data())
def test_source_follows_the_history(text, image, data):
    """What a vision encoder decided is about the slots after the words; later decisions are about all of them."""
    (T, text, _), (V, image, _) = (text[0], text[1][:1], 1), (image[0], image[1][:1], 1)
    (early, _), (first, text_real) = build(V, image, 0), build(T, text, 0)
    second, _ = build(
        len(image[0][1]), [(len(image[0][1]), data.draw(st.permutations(range(len(image[0][1])))), {})], 0
    )
    both = side_by_side(first, second)
    origin = torch.cat([torch.where(text_real, torch.arange(T), -1), torch.arange(T, T + V)[None]], dim=1)
    history = ((early, T), (both, 0))
    size = torch.ones(1, sum(both.slots))
    tokens = Tokens((size[:, :, None],), size, (None,), both.slots[0], lambda: origin, history)
    for i in range(T):
        assert int(tokens.source[0, i]) == (int(first.destination[0, i]) if text_real[0, i] else -1)
    for i in range(V):
        slot = int(early.destination[0, i])
        expected = both.slots[0] + int(second.destination[0, slot]) if slot >= 0 else -1
        assert int(tokens.source[0, T + i]) == expected


def test_gradients_reach_everything_that_is_merged():
    decision, _ = build(4, [(4, [0, 1], {2: 1, 3: 1})], 0)
    x = torch.randn(1, 4, 2, requires_grad=True)
    averaged(decision, x, torch.tensor([[1.0, 1.0, 2.0, 1.0]])).sum().backward()
    torch.testing.assert_close(x.grad[0, :, 0], torch.tensor([1.0, 0.25, 0.5, 0.25]))


def test_attention_bias_hides_free_slots():
    bias = attention_bias(torch.tensor([[True, True, False]]), torch.float64)
    assert bias.shape == (1, 1, 1, 3) and bias.dtype == torch.float64
    assert bias.exp().flatten().tolist() == [1.0, 1.0, 0.0]


@given(choices(), choices(), st.booleans(), st.booleans(), st.booleans())
def test_reduce_applies_one_decision_to_everything(text, image, weighted, proportional, two_streams):
    """An index carried through states, sizes, mask and sources tells the same story in each of them."""
    (T, text, _), (V, image, _) = (text[0], text[1][:1], 1), (image[0], image[1][:1], 1)
    first, text_real = build(T, text, 1)
    second, image_real = build(V, image, 1)
    mask = torch.cat([text_real, image_real], dim=1)
    one_hot = torch.eye(T + V, dtype=torch.float64)[None]  # each token's state says which token it is
    source = torch.where(mask, torch.arange(T + V), -1)
    streams, biases = (one_hot,), (attention_bias(mask),)
    if two_streams:
        streams, biases = one_hot.split([T, V], dim=1), biases[0].split([T, V], dim=-1)
    tokens = Tokens(streams, mask.float(), biases, T, lambda: source)
    decision = replace(side_by_side(first, second), proportional=proportional)
    weight = torch.arange(1.0, T + V + 1)[None] if weighted else None
    reduced = tokens.reduce(replace(decision, weight=weight))
    assert reduced.text_length == first.index.shape[1] and len(reduced.streams) == len(streams)
    assert torch.equal(reduced.lengths, replace(reduced, counts=None).lengths), "counted as they are"
    for k in range(reduced.mask.shape[1]):
        held = [i for i in range(T + V) if int(reduced.source[0, i]) == k]
        assert bool(reduced.mask[0, k]) == bool(held)
        assert float(reduced.size[0, k]) == len(held)
        assert reduced.states[0, k].nonzero()[:, 0].tolist() == held
        assert all((i < T) == (k < reduced.text_length) for i in held), "text stays text"
        if held:
            share = torch.tensor([float(i + 1) if weighted else 1.0 for i in held]).double()
            torch.testing.assert_close(reduced.states[0, k][held], share / share.sum(), atol=1e-6, rtol=1e-6)
            counts = len(held) if proportional else 1
            torch.testing.assert_close(reduced.bias[0, 0, 0, k].exp(), torch.tensor(float(counts)))
        else:
            assert reduced.bias[0, 0, 0, k] == -torch.inf


def test_sizes_weigh_in_the_second_reduction():
    """Two of three parts are in one token already: the mean counts them twice."""
    everything = torch.ones(1, 1, dtype=torch.bool)
    merge = [torch.tensor([[i]]) for i in (1, 0)]  # slot 1 goes into slot 0
    tokens = Tokens(
        (torch.tensor([[[3.0], [6.0], [9.0]]]),), torch.ones(1, 3), (None,), 0, lambda: torch.tensor([[0, 1, 2]])
    )
    stays = torch.tensor([[0, 2]])
    once = tokens.reduce(decided(stays, torch.ones(1, 2, dtype=torch.bool), *merge, everything, 3))
    twice = once.reduce(decided(stays[:, :1], everything, *merge, everything, 2))
    assert once.states.flatten().tolist() == [4.5, 9.0] and once.size.tolist() == [[2.0, 1.0]]
    assert twice.states.item() == pytest.approx((2 * 4.5 + 9) / 3) and twice.size.tolist() == [[3.0]]
    assert twice.source.tolist() == [[0, 0, 0]] and twice.bias.item() == pytest.approx(torch.tensor(3.0).log().item())
