"""The other methods' decisions against plain loops over one example; what their settings refuse."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import TINY
from torch.nn.functional import cosine_similarity

import pumer
from pumer import InputError
from pumer.reducers import (
    ClsPruningConfig,
    EViTConfig,
    PoolingConfig,
    RandomPruningConfig,
    ReleasedPuMerConfig,
    ToMeConfig,
)
from pumer.tokens import Block, Cues, Decision

RATIOS = st.one_of(st.just(0.1), st.just(0.5), st.floats(0.01, 0.99))
LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 16)), min_size=1, max_size=3)
SEEDS = st.integers(0, 2**31)


def groups(decision, sample):
    """What stands at each real output slot, target first; the rest in order."""
    found = [[int(i)] for i in decision.index[sample][decision.mask[sample]]]
    merged = zip(decision.source[sample], decision.target[sample], decision.valid[sample], strict=True)
    for source, target, valid in sorted((int(s), int(t), bool(v)) for s, t, v in merged):
        if valid:
            found[target].append(source)
    return found


def make_cues(lengths, seed, one_stream=False):
    """Random cues for samples of these lengths, in buffers that are two slots too long; padding is noise."""
    random = torch.Generator().manual_seed(seed)
    texts, images = zip(*lengths, strict=True)
    blocks, keys = [], []
    for counts in (texts, images):
        n = max(counts) + 2
        keys.append(torch.randn(len(counts), 2, n, 6, dtype=torch.float64, generator=random))
        blocks.append(Block(torch.arange(n) < torch.tensor(counts)[:, None], None, keys[-1]))
    row = torch.rand(len(images), 2, max(images) + 2, dtype=torch.float64, generator=random)
    return Cues(*blocks, cls_row=row, one_stream=one_stream), keys, row


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
    cues, (text_keys, image_keys), _ = make_cues(lengths, seed, one_stream=True)
    config = ToMeConfig(layers=(0,), merge_count=count)
    decision = config.reducers()["fusion", 0].decide(cues)
    assert decision.split == (0, 0)
    for b, (T, V) in enumerate(lengths):
        slots = [*range(T), *(text_keys.shape[2] + v for v in range(V))]
        keys = torch.cat([text_keys[b, :, :T], image_keys[b, :, :V]], dim=1)
        by_hand = merge_by_hand(keys, min(count, (T + V - 1) // 2))
        assert groups(decision, b) == [[slots[i] for i in group] for group in by_hand]


@given(st.integers(1, 12), LENGTHS, SEEDS)
def test_tome_in_two_streams_merges_the_image(count, lengths, seed):
    cues, (_, image_keys), _ = make_cues(lengths, seed)
    text, image = ToMeConfig(layers=(0,), merge_count=count).reducers()["fusion", 0].decide(cues)
    for b, (T, V) in enumerate(lengths):
        assert groups(text, b) == [[i] for i in range(T)]
        assert groups(image, b) == merge_by_hand(image_keys[b, :, :V], min(count, (V - 1) // 2))


def kept_by_hand(score, ratio):
    """Patches that are left of one example, [CLS] first."""
    n = len(score)
    pruned = min(round(ratio * n), n - 1)
    return sorted([0, *sorted(range(1, n), key=lambda i: (-float(score[i]), i))[: n - pruned - 1]])


@given(RATIOS, LENGTHS, SEEDS)
def test_cls_pruning_keeps_what_cls_attends_to(ratio, lengths, seed):
    cues, _, row = make_cues(lengths, seed)
    reducer = ClsPruningConfig(layers=(1,), prune_ratio=ratio).reducers()["fusion", 1]
    text, image = reducer.decide(cues)
    for b, (T, V) in enumerate(lengths):
        assert groups(text, b) == [[i] for i in range(T)]
        assert groups(image, b) == [[i] for i in kept_by_hand(row[b, :, :V].mean(0), ratio)]


@given(RATIOS, LENGTHS, SEEDS)
def test_evit_fuses_what_it_prunes(ratio, lengths, seed):
    cues, _, row = make_cues(lengths, seed)
    _, image = EViTConfig(layers=(1,), prune_ratio=ratio).reducers()["fusion", 1].decide(cues)
    x = torch.randn(*cues.image.mask.shape, 5, dtype=torch.float64)
    averaged = image.apply(x, image.weight)
    for b, (_, V) in enumerate(lengths):
        score = row[b, :, :V].mean(0)
        kept = kept_by_hand(score, ratio)
        lost = sorted(set(range(V)) - set(kept))
        expected = {i: x[b, i] for i in kept}
        if lost:
            strongest = max(lost, key=lambda i: (float(score[i]), -i))
            expected[strongest] = (score[lost, None] * x[b, lost]).sum(0) / score[lost].sum()
        torch.testing.assert_close(
            averaged[b][image.mask[b]], torch.stack([expected[i] for i in sorted(expected)]), atol=1e-12, rtol=1e-12
        )


@pytest.mark.parametrize("ratio", [0.01, 0.45])
def test_evit_counts_the_fused_token_once(ratio):
    cues, _, _ = make_cues([(4, 12), (3, 9)], 0, one_stream=True)
    joined = Decision.of_stream(*EViTConfig(layers=(1,), prune_ratio=ratio).reducers()["fusion", 1].decide(cues))
    assert not joined.proportional


def test_released_meter_prunes_nothing_when_it_merges_no_patch():
    random = torch.Generator().manual_seed(0)
    for one_stream, left in ((True, 6), (False, 9)):
        cues, _, _ = make_cues([(5, 7)], 0, one_stream)  # in buffers of 7 and 9, which the released code all sees
        cues = replace(cues, text_rows=torch.rand(1, 2, 7, 9, dtype=torch.float64, generator=random))
        config = ReleasedPuMerConfig(layers=(0,), prune_ratio=0.3, merge_ratio=0.0, text_merge_ratio=0.3)
        text, image = config.reducers()["fusion", 0].decide(cues)
        assert (len(groups(text, 0)), len(groups(image, 0))) == (5, left)


@given(RATIOS, LENGTHS, SEEDS)
def test_pooling_spreads_pairs_of_neighbours_evenly(ratio, lengths, seed):
    cues, _, _ = make_cues(lengths, seed)
    _, image = PoolingConfig(layers=(0,), merge_ratio=ratio).reducers()["fusion", 0].decide(cues)
    for b, (_, V) in enumerate(lengths):
        count, pairs = min(round(ratio * V), (V - 1) // 2), (V - 1) // 2
        chosen = {k * pairs // count for k in range(count)} if count else set()
        assert len(chosen) == count
        expected = [[0]]
        for i in range(1, V):
            if (i - 1) % 2 == 0:
                expected.append([i, i + 1] if (i - 1) // 2 in chosen else [i])
            elif (i - 2) // 2 not in chosen:
                expected.append([i])
        assert groups(image, b) == expected


def test_random_pruning_differs_between_pictures_layers_and_seeds_only():
    lengths = [(3, 40)] * 12
    cues, keys, _ = make_cues(lengths, seed=1)

    def chosen(layer=0, seed=0, cues=cues):
        config = RandomPruningConfig(layers=(layer,), prune_ratio=0.5, seed=seed)
        _, image = config.reducers()["fusion", layer].decide(cues)
        return [tuple(i for [i] in groups(image, b)) for b in range(len(cues.image.mask))]

    assert all(len(found) == 20 and found[0] == 0 for found in chosen())
    assert chosen() == chosen()
    assert len(set(chosen())) > 6
    assert all(a != b for a, b in zip(chosen(), chosen(layer=1), strict=True))
    assert all(a != b for a, b in zip(chosen(), chosen(seed=1), strict=True))
    last = Cues(*(Block(block.mask[5:6], None, block.keys[5:6]) for block in (cues.text, cues.image)))
    assert chosen(cues=last) == chosen()[5:6], "alone as in a batch"
    assert keys[1] is cues.image.keys


def test_random_pruning_is_uniform_and_knows_no_neighbours():
    samples, n = 4000, 40
    cues, _, _ = make_cues([(1, n + 1)] * samples, seed=3)
    _, image = RandomPruningConfig(layers=(0,), prune_ratio=0.5).reducers()["fusion", 0].decide(cues)
    stays = torch.zeros(samples, n + 1, dtype=torch.float64).scatter_(1, image.index, image.mask.double())[:, 1:]
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
    ],
)
def test_wrong_settings_are_named_in_one_line(make, words):
    with pytest.raises(InputError) as caught:
        make()
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
