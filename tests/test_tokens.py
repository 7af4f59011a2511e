"""One decision, applied to every per-token tensor: against a plain Python loop over one example."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pumer.tokens import Decision, Tokens, attention_bias


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
    return Decision.build(index, mask, source, target, valid, slots), real


@given(choices(), st.booleans(), st.integers(0, 2**31))
def test_decision_against_a_loop(choice, weighted, seed):
    slots, samples, _ = choice
    decision, real = build(*choice)
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(len(samples), slots, 3, generator=random, dtype=torch.float64)
    size = torch.randint(1, 5, (len(samples), slots), generator=random).float() * real
    weight = size if weighted else torch.ones_like(size)
    states, sizes, picked = decision.apply(x, weight), decision.total(size), decision.select(size)
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


@given(choices(), choices())
def test_join_is_the_two_decisions_side_by_side(left, right):
    left, right = (left[0], left[1][:1], left[2]), (right[0], right[1][:1], right[2])
    (first, _), (second, _) = build(*left), build(*right)
    x, y = torch.randn(1, left[0], 4), torch.randn(1, right[0], 4)
    a, b = torch.rand(1, left[0]) + 1, torch.rand(1, right[0]) + 1
    joined = Decision.join(first, second)
    parts = torch.cat([first.apply(x, a), second.apply(y, b)], dim=1)
    torch.testing.assert_close(joined.apply(torch.cat([x, y], dim=1), torch.cat([a, b], dim=1)), parts)
    K = first.index.shape[1]
    moved = torch.where(second.destination < 0, -1, second.destination + K)
    assert torch.equal(joined.destination, torch.cat([first.destination, moved], dim=1))
    assert torch.equal(joined.total(torch.cat([a, b], 1)), torch.cat([first.total(a), second.total(b)], 1))


@pytest.mark.parametrize("policy", [{"proportional": False}, {"weighted": False}])
def test_a_stream_refuses_two_rules(policy):
    decision = Decision.identity(torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="must agree"):
        Decision.of_stream(decision, decision.with_policy(**policy))


def test_several_sources_into_one_target_weigh_by_size():
    index, mask = torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool)
    merged = torch.tensor([[2, 3]])
    decision = Decision.build(index, mask, merged, torch.tensor([[1, 1]]), torch.ones(1, 2, dtype=torch.bool), 4)
    x, size = torch.tensor([[[7.0], [1.0], [2.0], [4.0]]]), torch.tensor([[1.0, 1.0, 2.0, 5.0]])
    torch.testing.assert_close(decision.apply(x, size), torch.tensor([[[7.0], [(1 + 4 + 20) / 8]]]))
    torch.testing.assert_close(decision.apply(x, torch.ones_like(size)), torch.tensor([[[7.0], [7 / 3]]]))
    assert decision.total(size).tolist() == [[1.0, 8.0]]
    assert decision.destination.tolist() == [[0, 1, 1, 1]]


def test_identity_changes_nothing():
    mask = torch.tensor([[True, True, False]])
    decision, x = Decision.identity(mask), torch.randn(1, 3, 2)
    assert torch.equal(decision.apply(x, torch.ones(1, 3))[:, :2], x[:, :2])
    assert decision.destination.tolist() == [[0, 1, -1]]


def test_owners_chain_over_two_reductions():
    everything = torch.ones(1, 3, dtype=torch.bool)
    # 4 slots: 3 merges into 1, 0 is pruned; then the new slots 0 1 (old 1 2) become one
    first = Decision.build(
        torch.tensor([[1, 2]]), everything[:, :2], torch.tensor([[3]]), torch.tensor([[1]]), everything[:, :1], 4
    )
    second = Decision.build(
        torch.tensor([[1]]), everything[:, :1], torch.tensor([[0]]), torch.tensor([[1]]), everything[:, :1], 2
    )
    owner = second.trace(first.trace(torch.tensor([[0, 1, 2, 3]])))
    assert owner.tolist() == [[-1, 0, 0, 0]]
    assert second.total(first.total(torch.ones(1, 4))).tolist() == [[3.0]]


def test_gradients_reach_everything_that_is_merged():
    decision, _ = build(4, [(4, [0, 1], {2: 1, 3: 1})], 0)
    x = torch.randn(1, 4, 2, requires_grad=True)
    decision.apply(x, torch.tensor([[1.0, 1.0, 2.0, 1.0]])).sum().backward()
    torch.testing.assert_close(x.grad[0, :, 0], torch.tensor([1.0, 0.25, 0.5, 0.25]))


def test_attention_bias_hides_free_slots_and_counts_parts():
    mask, size = torch.tensor([[True, True, False]]), torch.tensor([[1.0, 3.0, 0.0]])
    proportional = attention_bias(mask, size, True)
    assert proportional.shape == (1, 1, 1, 3)
    torch.testing.assert_close(proportional.exp().flatten(), torch.tensor([1.0, 3.0, 0.0]))
    assert attention_bias(mask, size, False).exp().flatten().tolist() == [1.0, 1.0, 0.0]


@given(choices(), choices(), st.booleans(), st.booleans())
def test_reduce_applies_one_decision_to_everything(text, image, weighted, proportional):
    """An index carried through states, sizes, mask and sources tells the same story in each of them."""
    (T, text, _), (V, image, _) = (text[0], text[1][:1], 1), (image[0], image[1][:1], 1)
    first, text_real = build(T, text, 1)
    second, image_real = build(V, image, 1)
    mask = torch.cat([text_real, image_real], dim=1)
    size = mask.float()
    one_hot = torch.eye(T + V, dtype=torch.float64)[None]  # each token's state says which token it is
    source = torch.where(mask, torch.arange(T + V), -1)
    tokens = Tokens(one_hot, mask, size, attention_bias(mask, size, False), source, T)
    policy = {"weighted": weighted, "proportional": proportional}
    reduced = tokens.reduce(Decision.join(first.with_policy(**policy), second.with_policy(**policy)))
    assert reduced.text_length == first.index.shape[1]
    for k in range(reduced.mask.shape[1]):
        held = [i for i in range(T + V) if int(reduced.source[0, i]) == k]
        assert bool(reduced.mask[0, k]) == bool(held)
        assert float(reduced.size[0, k]) == len(held)
        assert reduced.states[0, k].nonzero()[:, 0].tolist() == held
        assert all((i < T) == (k < reduced.text_length) for i in held), "text stays text"
        if held:
            torch.testing.assert_close(reduced.states[0, k][held], torch.full((len(held),), 1 / len(held)).double())
            weight = len(held) if proportional else 1
            torch.testing.assert_close(reduced.bias[0, 0, 0, k].exp(), torch.tensor(float(weight)))
        else:
            assert reduced.bias[0, 0, 0, k] == -torch.inf
