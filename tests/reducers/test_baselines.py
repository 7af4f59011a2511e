"""The other methods' decisions against plain loops over one example; what their settings refuse."""

from dataclasses import replace

import pytest
import torch
from by_hand import groups, handed_out, image_columns, random_cues
from hypothesis import given
from hypothesis import strategies as st
from tiny import TINY
from torch.nn.functional import cosine_similarity

import pumer
from pumer import InputError
from pumer.reducers import (
    AttentionReceivedConfig,
    ClsPruningConfig,
    EViTConfig,
    L2NormConfig,
    PoolingConfig,
    RandomPruningConfig,
    ReleasedPuMerConfig,
    ToMeConfig,
)
from pumer.reducers.cues import Cues

RATIOS = st.one_of(st.just(0.1), st.just(0.5), st.floats(0.01, 0.99))
LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 16)), min_size=1, max_size=3)
SEEDS = st.integers(0, 2**31)


def make_cues(lengths, seed, one_stream=False):
    """Random cues for samples of these lengths, in buffers that are two slots too long; padding is noise."""
    return random_cues(lengths, 2, seed, one_stream)


def decide(config, cues):
    """The decision of the config's only layer."""
    (reducer,) = config.reducers().values()
    return reducer.decide(handed_out(cues, reducer.needs))


def merge_by_hand(keys, count):
    """ToMe on one example's tokens (keys ``(H, n, Dh)``): the groups that are left, in order."""
    features = keys.mean(dim=0)
    proposals = []
    for even in range(2, len(features), 2):
        likeness = {
            odd: float(cosine_similarity(features[even], features[odd], 0)) for odd in range(1, len(features), 2)
        }
        receiver = max(likeness, key=likeness.__getitem__)
        proposals.append((likeness[receiver], even, receiver))
    best = sorted(proposals, key=lambda found: (-found[0], found[1]))[:count]
    gone = {even: receiver for _, even, receiver in best}
    return [[i, *sorted(even for even, to in gone.items() if to == i)] for i in range(len(features)) if i not in gone]


@given(st.integers(1, 12), LENGTHS, SEEDS)
def test_tome_in_one_stream_knows_no_modality(count, lengths, seed):
    cues = make_cues(lengths, seed, one_stream=True)
    decision = decide(ToMeConfig(layers=(0,), merge_count=count), cues)
    assert decision.slots[0] == 0, "afterwards all tokens count as image"
    for b, (T, V) in enumerate(lengths):
        slots = [*range(T), *(cues.tokens.text_length + v for v in range(V))]
        by_hand = merge_by_hand(cues.key[b][:, slots], min(count, (T + V - 1) // 2))
        assert groups(decision, b, 0) == ([], [[slots[i] for i in group] for group in by_hand])


@given(st.integers(1, 12), LENGTHS, SEEDS)
def test_tome_in_two_streams_merges_the_image(count, lengths, seed):
    cues = make_cues(lengths, seed)
    decision = decide(ToMeConfig(layers=(0,), merge_count=count), cues)
    for b, (T, V) in enumerate(lengths):
        by_hand = merge_by_hand(cues.image_key[b, :, :V], min(count, (V - 1) // 2))
        assert groups(decision, b, cues.tokens.text_length) == ([[i] for i in range(T)], by_hand)


def kept_by_hand(score, ratio):
    """Patches that are left of one example, [CLS] first."""
    n = len(score)
    pruned = min(round(ratio * n), n - 1)
    return sorted([0, *sorted(range(1, n), key=lambda i: (-float(score[i]), i))[: n - pruned - 1]])


def attention_of_cls(cues, sample):
    """``(V,)``, averaged over heads."""
    T = cues.tokens.text_length
    query = cues.query[sample, :, T : T + 1] if cues.one_stream else cues.cls_query[sample]
    return image_columns(cues, sample, query)[:, 0].mean(dim=0)


@given(RATIOS, LENGTHS, st.booleans(), SEEDS)
def test_cls_pruning_keeps_what_cls_attends_to(ratio, lengths, one_stream, seed):
    cues = make_cues(lengths, seed, one_stream)
    decision = decide(ClsPruningConfig(layers=(1,), prune_ratio=ratio), cues)
    for b, (T, _) in enumerate(lengths):
        kept = kept_by_hand(attention_of_cls(cues, b), ratio)
        assert groups(decision, b, cues.tokens.text_length) == ([[i] for i in range(T)], [[i] for i in kept])


@given(RATIOS, LENGTHS, st.booleans(), st.sampled_from(["smallest", "largest"]), SEEDS)
def test_l2norm_keeps_keys_of_one_end(ratio, lengths, one_stream, keep, seed):
    cues = make_cues(lengths, seed, one_stream)
    decision = decide(L2NormConfig(layers=(1,), prune_ratio=ratio, keep=keep), cues)
    for b, (T, V) in enumerate(lengths):
        norms = [sum(float(head[v].norm()) for head in cues.image_key[b]) for v in range(V)]
        kept = kept_by_hand([norm if keep == "largest" else -norm for norm in norms], ratio)
        assert groups(decision, b, cues.tokens.text_length) == ([[i] for i in range(T)], [[i] for i in kept])


@given(
    RATIOS, st.lists(st.tuples(st.integers(1, 40), st.integers(1, 16)), min_size=1, max_size=3), st.booleans(), SEEDS
)
def test_attention_received_asks_at_most_32_tokens(ratio, lengths, one_stream, seed):
    """Of the stream, or of the text where it is a stream of its own."""
    cues = make_cues(lengths, seed, one_stream)
    decision = decide(AttentionReceivedConfig(layers=(1,), prune_ratio=ratio), cues)
    first = cues.tokens.text_length
    for b, (T, V) in enumerate(lengths):
        asking = [*range(T), *(range(first, first + V) if one_stream else ())]
        n, m = len(asking), min(len(asking), 32)
        query = cues.query[b][:, [asking[i * n // m] for i in range(m)]]
        kept = kept_by_hand(image_columns(cues, b, query).sum(dim=(0, 1)), ratio)
        assert groups(decision, b, first) == ([[i] for i in range(T)], [[i] for i in kept])


@given(RATIOS, LENGTHS, st.booleans(), SEEDS)
def test_evit_fuses_what_it_prunes(ratio, lengths, one_stream, seed):
    cues = make_cues(lengths, seed, one_stream)
    decision, tokens = decide(EViTConfig(layers=(1,), prune_ratio=ratio), cues), cues.tokens
    averaged = tokens.reduce(decision).states
    for b, (T, V) in enumerate(lengths):
        score, x = attention_of_cls(cues, b), tokens.states[b, tokens.text_length :]
        kept = kept_by_hand(score, ratio)
        lost = sorted(set(range(V)) - set(kept))
        expected = {i: x[i] for i in kept}
        if lost:
            strongest = max(lost, key=lambda i: (float(score[i]), -i))
            expected[strongest] = (score[lost, None] * x[lost]).sum(0) / score[lost].sum()
        expected = torch.cat([tokens.states[b, :T], torch.stack([expected[i] for i in sorted(expected)])])
        torch.testing.assert_close(averaged[b][decision.mask[b]], expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("ratio", [0.01, 0.45])
def test_evit_counts_the_fused_token_once(ratio):
    assert not decide(EViTConfig(layers=(1,), prune_ratio=ratio), make_cues([(4, 12), (3, 9)], 0, True)).proportional


def test_released_meter_prunes_nothing_when_it_merges_no_patch():
    for one_stream, left in ((True, 6), (False, 9)):
        cues = make_cues([(5, 7)], 0, one_stream)  # in buffers of 7 and 9, which the released code all sees
        decision = decide(
            ReleasedPuMerConfig(layers=(0,), prune_ratio=0.3, merge_ratio=0.0, text_merge_ratio=0.3), cues
        )
        text, image = groups(decision, 0, cues.tokens.text_length)
        assert (len(text), len(image)) == (5, left)


@given(RATIOS, LENGTHS, SEEDS)
def test_pooling_spreads_pairs_of_neighbours_evenly(ratio, lengths, seed):
    cues = make_cues(lengths, seed)
    decision = decide(PoolingConfig(layers=(0,), merge_ratio=ratio), cues)
    for b, (T, V) in enumerate(lengths):
        count, pairs = min(round(ratio * V), (V - 1) // 2), (V - 1) // 2
        chosen = {k * pairs // count for k in range(count)} if count else set()
        assert len(chosen) == count
        expected = [[0]]
        for i in range(1, V):
            if (i - 1) % 2 == 0:
                expected.append([i, i + 1] if (i - 1) // 2 in chosen else [i])
            elif (i - 2) // 2 not in chosen:
                expected.append([i])
        assert groups(decision, b, cues.tokens.text_length) == ([[i] for i in range(T)], expected)


def test_random_pruning_differs_between_pictures_layers_and_seeds_only():
    cues = make_cues([(3, 40)] * 12, seed=1)

    def chosen(layer=0, seed=0, cues=cues):
        config = RandomPruningConfig(layers=(0,), prune_ratio=0.5, seed=seed)
        decision = config.decide(replace(cues, layer=layer))
        return [tuple(i for [i] in groups(decision, b, 5)[1]) for b in range(len(cues.image_mask))]

    assert all(len(found) == 20 and found[0] == 0 for found in chosen())
    assert chosen() == chosen()
    assert len(set(chosen())) > 6
    assert all(a != b for a, b in zip(chosen(), chosen(layer=1), strict=True))
    assert all(a != b for a, b in zip(chosen(), chosen(seed=1), strict=True))
    tokens = cues.tokens
    last = replace(tokens, streams=tuple(x[5:6] for x in tokens.streams), size=tokens.size[5:6])
    assert chosen(cues=Cues(last, cues.key[5:6])) == chosen()[5:6], "alone as in a batch"


def test_random_pruning_is_uniform_and_knows_no_neighbours():
    samples, n = 4000, 40
    cues = make_cues([(1, n + 1)] * samples, seed=3)
    decision = decide(RandomPruningConfig(layers=(0,), prune_ratio=0.5), cues)
    (first, _), kept = cues.tokens.slots, decision.slots[0]
    index, mask = decision.index[:, kept:] - first, decision.mask[:, kept:].double()
    stays = torch.zeros(samples, n + 1, dtype=torch.float64).scatter_(1, index.clamp(min=0), mask)[:, 1:]
    k = int(stays[0].sum())
    assert (stays.mean(dim=0) / (k / n) - 1).abs().max() < 0.1
    both = k * (k - 1) / (n * (n - 1))  # of two tokens, if each draw of k is as likely as any other
    for distance in range(1, 13):
        together = (stays[:, distance:] * stays[:, :-distance]).mean()
        assert abs(together / both - 1) < 0.03, distance


@pytest.mark.parametrize(("backbone", "tokens"), [("vilt", 77), ("meter", 37)])
def test_more_merges_than_any_layer_can_make_are_refused(backbone, tokens):
    most = (tokens - 1) // 2
    pumer.patch(TINY[backbone].build(), ToMeConfig(layers=(0, 2), merge_count=most))
    with pytest.raises(InputError, match=f"merge_count is {most + 1}.*see {tokens} tokens.*give {most} or less"):
        pumer.patch(TINY[backbone].build(), ToMeConfig(layers=(0, 2), merge_count=most + 1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ToMeConfig(layers=(1,), merge_count=-1), ["merge_count", "-1"]),
        (lambda: ToMeConfig(layers=(1,), merge_count=0.5), ["merge_count", "0.5"]),
        (lambda: ToMeConfig(merge_count=2), ["no layer reduces"]),
        (lambda: ToMeConfig(layers=(1,), stack="text"), ["'text'", "vision"]),
        (lambda: EViTConfig(layers=(1, 1), prune_ratio=0.1), ["layer 1", "2 times"]),
        (lambda: ClsPruningConfig(layers=(-1,), prune_ratio=0.1), ["-1"]),
        (lambda: RandomPruningConfig(layers=(1,), prune_ratio=1), ["prune_ratio", "1"]),
        (lambda: RandomPruningConfig(layers=(1,), prune_ratio=0.1, seed=-1), ["seed", "-1"]),
        (lambda: RandomPruningConfig(layers=(1,), prune_ratio=0.1, seed=0.5), ["seed", "0.5"]),
        (lambda: PoolingConfig(layers=(1,), merge_ratio="a"), ["merge_ratio", "'a'"]),
        (lambda: L2NormConfig(layers=(1,), prune_ratio=0.1, keep="long"), ["keep", "'long'", "'largest'"]),
    ],
)
def test_wrong_settings_are_named_in_one_line(make, words):
    with pytest.raises(InputError) as caught:
        make()
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
