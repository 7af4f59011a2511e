"""VisionZip against a loop over tokens: who is dominant, and who goes into which contextual one."""

import torch
from by_hand import cosine
from hypothesis import given
from hypothesis import strategies as st
from shortening.images import RATIOS, SEEDS, TOKENS, best, check, image_tokens

from pumer.reducers.shortening.visionzip import VisionZipConfig


def merged_by_hand(image, count, contextual):
    """Who stays, and who goes into whom."""
    key = image.key()
    dominant = best(image.attention().tolist(), count - contextual)
    rest = [i for i in range(len(key)) if i not in dominant]
    targets = [rest[k * len(rest) // contextual] for k in range(contextual)]
    lost = [i for i in rest if i not in targets] if contextual else []
    into = {i: max(targets, key=lambda j: (cosine(key[i], key[j]), -j)) for i in lost}
    return sorted([*dominant, *targets]), into


@given(TOKENS, RATIOS, st.sampled_from([0, 5 / 32, 0.5, 0.9]), SEEDS)
def test_dominant_tokens_stay_and_the_others_are_averaged(n, ratio, contextual, seed):
    image = image_tokens(n, seed)
    config = VisionZipConfig(prune_ratio=ratio, contextual_ratio=contextual)
    count = config.kept(n)
    kept, into = merged_by_hand(image, count, round(contextual * count))
    assert len(kept) == count
    groups = {j: [j, *(i for i, goes in into.items() if goes == j)] for j in kept}
    means = {j: image.features[group].mean(dim=0) for j, group in groups.items()}
    check(config.choose(image), image, kept, into, None if round(contextual * count) == 0 else means)


def test_as_many_contextual_ones_as_in_the_paper():
    found = {count: round(VisionZipConfig().contextual_ratio * count) for count in (64, 128, 192)}
    assert found == {64: 10, 128: 20, 192: 30}


def test_a_broken_token_is_not_found_in_those_that_stay_alone():
    image = image_tokens(14, 0)
    config = VisionZipConfig(prune_ratio=0.5, contextual_ratio=0.3)
    group = config.choose(image).group.tolist()
    lost = next(i for i, goes in enumerate(group) if goes != i)
    image.features[lost] = torch.nan
    choice = config.choose(image)
    broken = choice.features.isnan().any(dim=1)
    assert [group.count(i) > 1 for i in choice.index.tolist()] == broken.tolist()
