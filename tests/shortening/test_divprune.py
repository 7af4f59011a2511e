"""DivPrune against a plain loop over pairs."""

import pytest
import torch
from by_hand import cosine
from hypothesis import given
from shortening.images import RATIOS, SEEDS, TOKENS, check, image_tokens

from pumer.reducers.shortening.divprune import DivPruneConfig


def chosen_by_hand(features, count):
    """Each time the token whose nearest chosen one is farthest; first the one whose nearest neighbour is."""
    n, chosen = len(features), []
    for _ in range(count):
        others = [i for i in range(n) if i not in chosen]
        near = {
            i: min([1 - cosine(features[i], features[j]) for j in chosen or others if j != i], default=0)
            for i in others
        }
        chosen.append(max(others, key=lambda i: (round(near[i], 9), -i)))
    return sorted(chosen)


@given(TOKENS, RATIOS, SEEDS)
def test_the_farthest_token_is_next(n, ratio, seed):
    image, config = image_tokens(n, seed), DivPruneConfig(prune_ratio=ratio)
    check(config.choose(image), image, chosen_by_hand(image.features, config.kept(n)))


def test_copies_go_first():
    """Of five tokens there are three copies each, scaled: one of each stays, the first."""
    image = image_tokens(15, 0)
    image.features[5:10], image.features[10:] = 2 * image.features[:5], 0.3 * image.features[:5]
    check(DivPruneConfig(prune_ratio=10 / 15).choose(image), image, [0, 1, 2, 3, 4])


def test_alike_tokens_stay_by_index():
    """Rounding would part the directions of tokens that differ in length alone."""
    image = image_tokens(100, 1, width=40)
    image.features[:] = image.features[0] * torch.rand(100, 1, dtype=torch.float64)
    check(DivPruneConfig(prune_ratio=0.5).choose(image), image, list(range(50)))


@pytest.mark.parametrize("seed", range(20))
def test_of_two_that_are_neighbours_the_lower_one_is_first(seed):
    """In the middle of pairs that are close, there are two tokens that are closest to each other, and far apart."""
    image = image_tokens(30, seed, width=40)
    image.features[1::2] = image.features[0::2] + 0.1 * image.features[1::2]
    image.features[11] = image.features[10] + image_tokens(1, seed, width=40).features[0]
    check(DivPruneConfig(prune_ratio=29 / 30).choose(image), image, [10])


def test_broken_tokens_do_not_decide_about_the_others():
    image = image_tokens(12, 2)
    image.features[3] = torch.nan
    found = DivPruneConfig(prune_ratio=0.5).choose(image).index.tolist()
    image.features[3] = 0
    assert found == DivPruneConfig(prune_ratio=0.5).choose(image).index.tolist()
