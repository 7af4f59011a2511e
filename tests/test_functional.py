"""Each function against a plain Python loop over one example, on random shapes, masks and ratios."""

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


def test_tabulate_rounds_as_python_does_and_takes_the_largest_value_of_the_table():
    def rule(n):
        return n - round(0.5 * n)  # 0 1 1 1 2 3 3 3: half to even

    counts, buffer = functional.tabulate(rule, torch.tensor([1, 2, 3, 5, 7]), 7)
    assert counts.tolist() == [1, 1, 1, 3, 3]
    assert counts.dtype == torch.int64
    assert buffer == 3


def test_tabulate_buffer_of_a_rule_that_falls():
    def rule(n):
        return n if n < 5 else 1

    assert functional.tabulate(rule, torch.tensor([7]), 7)[1] == 4


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


@given(blocks(), st.integers(0, 20))
def test_highest_ties_go_to_the_lower_rank(block, wanted):
    lengths, slots, seed = block
    score = torch.randint(0, 4, (len(lengths), slots), generator=random_for(seed)).float()
    flags = functional.highest(score, torch.full((len(lengths),), wanted))
    for b in range(len(lengths)):
        best = sorted(range(slots), key=lambda n: (-float(score[b, n]), n))[:wanted]
        assert flags[b].nonzero()[:, 0].tolist() == sorted(best)


@given(blocks(), st.data())
def test_prune_keeps_cls_and_the_most_salient_real_tokens(block, data):
    lengths, slots, seed = block
    # few distinct values: ties happen; padding is the most salient of all
    saliency = torch.randint(0, 6, (len(lengths), slots), generator=random_for(seed)).float()
    mask = compact_mask(lengths, slots)
    saliency[~mask] = 9.0
    saliency[:, 0] = -1.0  # the least salient: kept only because it is [CLS]
    counts = [data.draw(st.integers(1, n)) for n in lengths]
    keep = functional.prune(saliency, mask, torch.tensor(counts))
    for b, (n, count) in enumerate(zip(lengths, counts, strict=True)):
        others = sorted(range(1, n), key=lambda v: (-float(saliency[b, v]), v))[: count - 1]
        assert keep[b].nonzero()[:, 0].tolist() == sorted([0, *others])


def test_prune_never_keeps_padding_though_asked_for_more_than_there_is():
    mask = compact_mask([2], 5)
    assert functional.prune(torch.rand(1, 5), mask, torch.tensor([4])).tolist() == mask.tolist()


def match_by_hand(features, real, count):
    """Algorithm 1, lines 5 to 9, for one sample: pairs of (source, target) ranks, best first."""
    edges = []
    for source in range(2, real, 2):
        similar = [(cosine(features[source], features[target]), target) for target in range(1, real, 2)]
        edges.append((*max(similar, key=lambda edge: (edge[0], -edge[1])), source))
    edges.sort(key=lambda edge: (-edge[0], edge[2]))
    return [(source, target) for _, target, source in edges[:count]]


@given(blocks(least=2), st.data())
def test_match_pairs_even_with_odd_ranks_of_real_tokens(block, data):
    lengths, slots, seed = block
    features = torch.randn(len(lengths), slots, 5, dtype=torch.float64, generator=random_for(seed))
    for b, n in enumerate(lengths):
        features[b, n:] = features[b, 0]  # padding like a real token: the best partner there is, if it were one
        if slots > n > 2:
            features[b, n:] = features[b, 2]
    counts = [data.draw(st.integers(0, max((n - 1) // 2, 0))) for n in lengths]
    most = data.draw(st.integers(max(counts), (slots + 1) // 2))
    source, target, valid = functional.match(features, compact_mask(lengths, slots), torch.tensor(counts), most)
    assert source.shape == target.shape == valid.shape == (len(lengths), most)
    for b, (n, count) in enumerate(zip(lengths, counts, strict=True)):
        pairs = list(zip(source[b][valid[b]].tolist(), target[b][valid[b]].tolist(), strict=True))
        assert pairs == match_by_hand(features[b], n, count)
        assert all(s % 2 == 0 and s > 0 and t % 2 == 1 and max(s, t) < n for s, t in pairs)


def test_match_ties_go_to_the_lower_rank():
    same = torch.ones(1, 9, 3)
    source, target, valid = functional.match(same, torch.ones(1, 9, dtype=torch.bool), torch.tensor([3]), 3)
    assert (source.tolist(), target.tolist(), valid.all().item()) == ([[2, 4, 6]], [[1, 1, 1]], True)


def test_match_is_about_direction_not_length():
    features = torch.tensor([[[1.0, 0.0], [50.0, 60.0], [1.0, 0.2], [0.3, 0.05]]])
    _, target, _ = functional.match(features, torch.ones(1, 4, dtype=torch.bool), torch.tensor([1]), 1)
    assert target.tolist() == [[3]], "the dot product is largest with rank 1, the cosine with rank 3"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_match_compares_half_precision_keys_in_single(dtype):
    features = torch.randn(2, 20, 8).to(dtype)
    mask, count = torch.ones(2, 20, dtype=torch.bool), torch.tensor([5, 7])
    low = functional.match(features, mask, count, 7)
    high = functional.match(features.float(), mask, count, 7)
    assert all(torch.equal(a, b) for a, b in zip(low, high, strict=True))


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
