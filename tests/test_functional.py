"""Each function against a plain Python loop over one example, on random shapes, masks and ratios."""

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pumer import functional

SEEDS = st.integers(0, 2**31)


def random_for(seed):
    return torch.Generator().manual_seed(seed)


def compact_mask(lengths, slots):
    return torch.arange(slots) < torch.tensor(lengths)[:, None]


@st.composite
def blocks(draw, least=1, most=14):
    """Real lengths of a few samples, the slots of the buffer and a seed."""
    lengths = draw(st.lists(st.integers(least, most), min_size=1, max_size=4))
    return lengths, max(lengths) + draw(st.integers(0, 4)), draw(SEEDS)


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()).clamp(min=1e-12))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 9), st.booleans(), SEEDS)
def test_attention_probabilities_and_fused_attention_agree_with_a_loop(batch, heads, rows, tokens, masked, seed):
    random = random_for(seed)
    query = torch.randn(batch, heads, rows, 8, generator=random)
    key, value = torch.randn(2, batch, heads, tokens, 8, generator=random)
    bias = None
    if masked:
        size = torch.randint(1, 4, (batch, tokens), generator=random).float()
        mask = torch.rand(batch, tokens, generator=random) < 0.7
        mask[:, 0] = True
        bias = size.log().masked_fill(~mask, -torch.inf)[:, None, None]
    probabilities = functional.attention_probabilities(query, key, bias)
    context = functional.attention(query, key, value, bias)
    for b in range(batch):
        for h in range(heads):
            for r in range(rows):
                weights = []
                for n in range(tokens):
                    weight = torch.exp(query[b, h, r] @ key[b, h, n] / 8**0.5)
                    if masked:  # a merged token counts as often as it has parts
                        weight = weight * (size[b, n] if mask[b, n] else 0)
                    weights.append(weight)
                weights = torch.stack(weights) / sum(weights)
                torch.testing.assert_close(probabilities[b, h, r], weights, atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(context[b, h, r], weights @ value[b, h], atol=1e-5, rtol=1e-4)


@given(blocks(), st.integers(1, 9), st.integers(1, 4))
def test_text_saliency_is_equation_1_over_real_words(block, tokens, heads):
    lengths, slots, seed = block
    rows = torch.rand(len(lengths), heads, slots, tokens, generator=random_for(seed))
    saliency = functional.text_saliency(rows, compact_mask(lengths, slots))
    for b, words in enumerate(lengths):
        for v in range(tokens):
            total = sum(float(rows[b, h, t, v]) for h in range(heads) for t in range(words))
            assert float(saliency[b, v]) == pytest.approx(total / words, rel=1e-5)


def test_text_saliency_without_any_word_is_zero_rather_than_nan():
    saliency = functional.text_saliency(torch.rand(1, 2, 3, 4), torch.zeros(1, 3, dtype=torch.bool))
    assert saliency.tolist() == [[0.0] * 4]


@given(blocks(), st.integers(1, 9), st.integers(1, 4))
def test_what_the_text_asks_for_is_saliency_times_words(block, tokens, heads):
    lengths, slots, seed = block
    rows = torch.rand(len(lengths), heads, slots, tokens, dtype=torch.float64, generator=random_for(seed))
    mask = compact_mask(lengths, slots)
    saliency = functional.text_saliency(rows, mask)
    asked = functional.asked_for(rows, mask.to(rows.dtype))
    torch.testing.assert_close(asked, saliency * torch.tensor(lengths)[:, None])
    for b, words in enumerate(lengths):
        for v in range(tokens):
            total = sum(float(rows[b, h, t, v]) for h in range(heads) for t in range(words))
            assert float(asked[b, v]) == pytest.approx(total, rel=1e-9)


@given(blocks(), st.integers(0, 5))
def test_compact_lists_the_chosen_in_order(block, spare):
    lengths, slots, seed = block
    keep = torch.rand(len(lengths), slots, generator=random_for(seed)) < 0.5
    length = min(int(keep.sum(dim=1).max()) + spare, slots)
    index, valid = functional.compact(keep, length)
    assert index.shape == valid.shape == (len(lengths), length)
    assert ((index >= 0) & (index < slots)).all(), "indices of free slots must be valid, too"
    for b in range(len(lengths)):
        assert index[b][valid[b]].tolist() == [n for n in range(slots) if keep[b, n]]
        assert valid[b].tolist() == sorted(valid[b].tolist(), reverse=True)


@given(blocks(), st.data())
def test_kept_first_lists_the_best_in_their_order_then_the_others_in_theirs(block, data):
    lengths, slots, seed = block
    # few distinct values: ties happen, which go to the lower rank
    score = torch.randint(0, 4, (len(lengths), slots), generator=random_for(seed)).float()
    counts = [data.draw(st.integers(0, slots)) for _ in lengths]
    dropped = torch.arange(slots) >= torch.tensor(counts)[:, None]
    order = functional.kept_first(score, dropped)
    assert order.dtype == torch.int64
    for b, count in enumerate(counts):
        best = sorted(sorted(range(slots), key=lambda n: (-float(score[b, n]), n))[:count])
        assert order[b].tolist() == [*best, *(n for n in range(slots) if n not in best)]


@given(blocks(least=2), st.data())
def test_kept_first_never_keeps_padding(block, data):
    """Padding scores nothing: at best as much as a token that no text asks for."""
    lengths, slots, seed = block
    score = torch.randint(0, 6, (len(lengths), slots), generator=random_for(seed)).float()
    score[~compact_mask(lengths, slots)] = data.draw(st.sampled_from([0.0, -torch.inf]))
    counts = [data.draw(st.integers(1, n)) for n in lengths]
    order = functional.kept_first(score, torch.arange(slots) >= torch.tensor(counts)[:, None])
    for b, (n, count) in enumerate(zip(lengths, counts, strict=True)):
        best = sorted(range(n), key=lambda v: (-float(score[b, v]), v))[:count]
        assert order[b, :count].tolist() == sorted(best)


def match_by_hand(features, real, count):
    """Algorithm 1, lines 5 to 9, for one sample: pairs of (source, target) ranks, best first."""
    edges = []
    for source in range(2, real, 2):
        similar = [(cosine(features[source], features[target]), target) for target in range(1, real, 2)]
        edges.append((*max(similar, key=lambda edge: (edge[0], -edge[1])), source))
    edges.sort(key=lambda edge: (-edge[0], edge[2]))
    return [(source, target) for _, target, source in edges[:count]]


def pairs(features, lengths, counts):
    """The pairs of `propose`, as (source, target) ranks of each sample in order of the source; what it returns."""
    slots = features.shape[1]
    features = functional.unit(torch.cat([features, features[:, : slots % 2]], dim=1))
    outside = ~compact_mask(lengths, features.shape[1])
    outside[:, 0] = True  # [CLS]
    spared = ~compact_mask(counts, features.shape[1] // 2)
    stays, receiver = functional.propose(features, outside, spared)
    merged = [(~row).nonzero()[:, 0].tolist() for row in stays]
    return [[(2 * i, 2 * int(receiver[b, i]) + 1) for i in row] for b, row in enumerate(merged)], stays, receiver


@given(blocks(least=2), st.data())
def test_propose_pairs_even_with_odd_ranks_of_real_tokens(block, data):
    lengths, slots, seed = block
    features = torch.randn(len(lengths), slots, 5, dtype=torch.float64, generator=random_for(seed))
    for b, n in enumerate(lengths):
        features[b, n:] = features[b, 0]  # padding like a real token: the best partner there is, if it were one
        if slots > n > 2:
            features[b, n:] = features[b, 2]
    counts = [data.draw(st.integers(0, max((n - 1) // 2, 0))) for n in lengths]
    found, stays, receiver = pairs(features, lengths, counts)
    assert stays.shape == receiver.shape == (len(lengths), (slots + 1) // 2)
    for b, (n, count) in enumerate(zip(lengths, counts, strict=True)):
        assert found[b] == sorted(match_by_hand(features[b], n, count))
        assert all(s % 2 == 0 and s > 0 and t % 2 == 1 and max(s, t) < n for s, t in found[b])


def test_propose_ties_go_to_the_lower_rank():
    found, _, _ = pairs(torch.ones(1, 9, 3), [9], [3])
    assert found == [[(2, 1), (4, 1), (6, 1)]]


def test_propose_is_about_direction_not_length():
    features = torch.tensor([[[1.0, 0.0], [50.0, 60.0], [1.0, 0.2], [0.3, 0.05]]])
    found, _, _ = pairs(features, [4], [1])
    assert found == [[(2, 3)]], "the dot product is largest with rank 1, the cosine with rank 3"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keys_are_compared_in_single(dtype):
    features = torch.randn(2, 20, 8).to(dtype)
    assert functional.unit(features).dtype == torch.float32
    low, high = pairs(features, [20, 20], [5, 7]), pairs(features.float(), [20, 20], [5, 7])
    assert low[0] == high[0] and torch.equal(low[2], high[2])


@given(blocks(least=2), st.integers(0, 9), st.data())
def test_after_merging_the_others_move_up(block, first, data):
    """From merged pairs to the code of each rank, where the block's output slots begin anywhere."""
    lengths, slots, _ = block
    width = slots + slots % 2
    merges = [
        data.draw(
            st.dictionaries(st.integers(1, width // 2 - 1), st.integers(0, width // 2 - 1), max_size=width // 2 - 1)
        )
        if width > 2
        else {}
        for _ in lengths
    ]
    stays = torch.ones(len(lengths), width // 2, dtype=torch.bool)
    receiver = torch.zeros(len(lengths), width // 2, dtype=torch.int64)
    for b, into in enumerate(merges):
        for i, odd in into.items():
            stays[b, i], receiver[b, i] = False, odd
    rank = torch.arange(width)
    least = (2 * (rank + first) - 2 * (rank // 2 + 1)).view(-1, 2)
    code = functional.after_merging(torch.stack([*least.unbind(1), least[:, 1] + 1], dim=1), stays, receiver)
    for b, into in enumerate(merges):
        left = [r for r in range(width) if r % 2 or r // 2 not in into]
        expected = {r: 2 * (first + slot) for slot, r in enumerate(left)}
        expected |= {2 * i: expected[2 * odd + 1] + 1 for i, odd in into.items()}
        assert code[b].tolist() == [expected[r] for r in range(width)]


@given(blocks(), st.booleans())
def test_gather_tokens(block, wide):
    lengths, slots, seed = block
    random = random_for(seed)
    x = torch.randn((len(lengths), slots, *([3] if wide else [])), generator=random)
    index = torch.randint(0, slots, (len(lengths), 6), generator=random)
    picked = functional.gather_tokens(x, index)
    for b in range(len(lengths)):
        for k in range(6):
            assert torch.equal(picked[b, k], x[b, index[b, k]])


@given(
    st.lists(st.integers(-2, 2), min_size=1, max_size=12), st.booleans(), st.sampled_from([torch.float32, torch.bool])
)
def test_the_order_an_exported_program_counts_is_that_of_a_stable_sort(values, descending, dtype):
    score = torch.tensor([values]).to(dtype)
    expected = sorted(range(len(values)), key=lambda i: (-1 if descending else 1) * float(score[0, i]))
    assert functional.ordered(score, descending)[0].tolist() == expected
    with mock.patch("torch.compiler.is_exporting", lambda: True):
        assert functional.ordered(score, descending)[0].tolist() == expected


@given(st.lists(st.sampled_from([0.0, 1.0, torch.inf, -torch.inf, torch.nan]), min_size=1, max_size=9), st.booleans())
def test_an_order_holds_every_token_once_even_where_scores_are_nan(values, descending):
    score = torch.tensor([values])
    assert sorted(functional.ordered(score, descending)[0].tolist()) == list(range(len(values)))
    with mock.patch("torch.compiler.is_exporting", lambda: True):
        order = functional.ordered(score, descending)[0].tolist()
    assert sorted(order) == list(range(len(values)))
    finite = [i for i in order if values[i] < torch.inf]
    assert finite == sorted(finite, key=lambda i: -values[i] if descending else values[i])
