"""CDPruner against determinants of the kernel, computed anew for each candidate."""

import torch
from by_hand import cosine
from hypothesis import given
from hypothesis import strategies as st
from shortening.images import RATIOS, SEEDS, TOKENS, check, image_tokens

from pumer.reducers.shortening.cdpruner import CDPrunerConfig


def relevance_by_hand(image):
    found = [sum(cosine(token, word) for word in image.text) for token in image.features]
    least, most = min(found), max(found)
    return [(one - least) / (most - least) if most > least else 1 for one in found]


def chosen_by_hand(image, count):
    """Each time the token that makes the determinant largest; if none can, the most relevant one."""
    n, weight = len(image.features), relevance_by_hand(image)
    similarity = torch.tensor([[cosine(a, b) for b in image.features] for a in image.features], dtype=torch.float64)
    similarity.fill_diagonal_(1)
    chosen = []
    for _ in range(count):
        others = [i for i in range(n) if i not in chosen]
        volume = float(similarity[chosen][:, chosen].det()) if chosen else 1
        new = {i: float(similarity[[*chosen, i]][:, [*chosen, i]].det()) / volume for i in others}
        able = [i for i in others if new[i] > 1e-4]
        if not able:
            return sorted([*chosen, *sorted(others, key=lambda i: (-weight[i], i))[: count - len(chosen)]])
        chosen.append(max(able, key=lambda i: (round(weight[i] ** 2 * new[i], 9), -i)))
    return sorted(chosen)


@given(TOKENS, RATIOS, st.integers(0, 4), SEEDS)
def test_the_largest_determinant_is_next(n, ratio, words, seed):
    image, config = image_tokens(n, seed, words=words), CDPrunerConfig(prune_ratio=ratio)
    check(config.choose(image), image, chosen_by_hand(image, config.kept(n)))


@given(st.integers(2, 9), RATIOS, SEEDS)
def test_features_wider_than_there_are_tokens(n, ratio, seed):
    image, config = image_tokens(n, seed, width=12), CDPrunerConfig(prune_ratio=ratio)
    check(config.choose(image), image, chosen_by_hand(image, config.kept(n)))


def test_a_relevant_copy_loses_to_something_new():
    """The first two tokens are the word; the third one is half the word."""
    image = image_tokens(4, 0, words=1)
    axes = torch.eye(6, dtype=torch.float64)
    image.text[0] = axes[0]
    image.features[:] = torch.stack([axes[0], axes[0], axes[0] + axes[1], axes[2]])
    check(CDPrunerConfig(prune_ratio=0.5).choose(image), image, [0, 2])


def test_the_text_decides():
    image = image_tokens(12, 1, words=1, width=16)
    config = CDPrunerConfig(prune_ratio=0.75)
    before = config.choose(image).index.tolist()
    image.text.neg_()
    assert config.choose(image).index.tolist() != before


def test_without_words_all_are_as_relevant():
    image = image_tokens(10, 2, words=0, width=16)
    image.features[:] = torch.eye(16, dtype=torch.float64)[:10]
    check(CDPrunerConfig(prune_ratio=0.5).choose(image), image, [0, 1, 2, 3, 4])
