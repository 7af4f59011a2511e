"""LLaVA-PruMerge against a loop over tokens."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from shortening.images import SEEDS, TOKENS, check, image_tokens

from pumer.reducers.shortening.prumerge import PruMergeConfig


def quartile(values, part):
    """Between the two values around it, by where it lies."""
    values = sorted(values)
    at = part * (len(values) - 1)
    low = int(at)
    return values[low] + (at - low) * (values[min(low + 1, len(values) - 1)] - values[low])


def kept_by_hand(attention, even):
    low, high = quartile(attention, 0.25), quartile(attention, 0.75)
    outliers = [i for i, one in enumerate(attention) if one > high + 1.5 * (high - low)]
    outliers = outliers or [attention.index(max(attention))]
    count = min(even * len(outliers), len(attention))
    return sorted({*outliers, *(k * len(attention) // count for k in range(count))})


def merged_by_hand(image, kept, neighbors):
    """Means of those that stay, and where the others are found again."""
    key, attention = image.key(), image.attention()
    gone = [i for i in range(len(key)) if i not in kept]
    takes = {j: sorted(gone, key=lambda i, j=j: (-float(key[i] @ key[j]), i))[:neighbors] for j in kept}
    means = {}
    for j, taken in takes.items():
        weight = {i: float(attention[i]) for i in [j, *taken]}
        means[j] = sum(weight[i] * image.features[i] for i in weight) / sum(weight.values())
    into = {i: [j for j in kept if i in takes[j]] for i in gone}
    into = {i: max(some, key=lambda j, i=i: (float(key[i] @ key[j]), -j)) for i, some in into.items() if some}
    return into, means


@given(TOKENS, st.sampled_from([0, 1, 3]), st.sampled_from([0, 1, 3, 32]), SEEDS)
def test_outliers_stay_and_take_in_their_neighbors(n, even, neighbors, seed):
    image = image_tokens(n, seed)
    kept = kept_by_hand(image.attention().tolist(), even)
    into, means = merged_by_hand(image, kept, neighbors)
    unmerged = neighbors == 0 or len(kept) == n
    choice = PruMergeConfig(even_tokens=even, neighbors=neighbors).choose(image)
    check(choice, image, kept, into, None if unmerged else means)


def test_another_image_keeps_another_number():
    few, many = image_tokens(14, 0), image_tokens(14, 1)
    few.attention()[:] = many.attention()[:] = 1
    few.attention()[3], many.attention()[[3, 5, 9]] = 9, 9
    config = PruMergeConfig()
    assert config.choose(few).index.tolist() == [3]
    assert config.choose(many).index.tolist() == [3, 5, 9]
    assert PruMergeConfig(even_tokens=3).choose(few).index.tolist() == [0, 3, 4, 9]


def test_where_outliers_begin():
    """The quartiles are 1 and 2: half of three above the second, not less, is an outlier."""
    image = image_tokens(9, 3)
    image.attention()[:] = torch.tensor([3.5, 1, 3.6, 1, 1, 2, 1, 2, 2])
    assert PruMergeConfig().choose(image).index.tolist() == [2]
    image.attention()[2] = 3.5
    assert PruMergeConfig().choose(image).index.tolist() == [0], "without any, the first of the largest"


def test_without_any_attention_features_stay_as_they_are():
    image = image_tokens(8, 2)
    image.attention().zero_()
    assert torch.equal(PruMergeConfig().choose(image).features, image.features[:1])
