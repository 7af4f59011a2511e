"""Tokens by chance: in any run the same, in other images others, and each as often as any other."""

import torch
from shortening.images import image_tokens

from pumer.reducers.shortening.random_prompt import RandomPromptConfig


def chosen(seed=0, image=0, n=14):
    return RandomPromptConfig(prune_ratio=0.5, seed=seed).choose(image_tokens(n, image, width=32)).index.tolist()


def test_the_same_in_any_run():
    assert chosen() == [0, 2, 5, 7, 8, 9, 10]


def test_others_for_another_seed_and_another_image():
    assert chosen() != chosen(seed=1)
    assert chosen() != chosen(image=1)


def test_rounding_does_not_change_it():
    image, config = image_tokens(14, 0, width=32), RandomPromptConfig(prune_ratio=0.5)
    expected = config.choose(image).index
    image.features.mul_(1 + 1e-9 * torch.randn(14, 32, dtype=torch.float64))
    assert torch.equal(config.choose(image).index, expected)


def test_each_token_is_as_likely():
    count = torch.zeros(10)
    for seed in range(400):
        count[chosen(seed=seed, n=10)] += 1
    assert count.sum() == 2000 and count.min() > 150 and count.max() < 250
