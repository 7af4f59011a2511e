"""Random tokens of one image, and what a choice among them must be."""

from dataclasses import replace

import torch
from hypothesis import strategies as st

from pumer.reducers.shortening.base import ImageTokens

TOKENS = st.integers(1, 14)
RATIOS = st.one_of(st.sampled_from([0.0, 0.5]), st.floats(0.01, 0.99))
SEEDS = st.integers(0, 2**31)


def image_tokens(n, seed, words=3, columns=4, width=6):
    """Random tokens of one image of some tiles or frames of 2 rows; the last row of the last one may be short.

    Args:
        n: How many.
        seed: Of the random numbers.
        words: Of the prompt.
        columns: Of a tile.
        width: Of features and words.
    """
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=random)

    rank = torch.arange(n)
    cell = torch.stack([rank // (2 * columns), rank // columns % 2, rank % columns], dim=1)
    states, key, attention = normal(n, 5), normal(n, 4), normal(n).exp()
    return ImageTokens(normal(n, width), normal(words, width), cell, lambda: states, lambda: key, lambda: attention)


def in_dtype(image, dtype, through=None):
    """The same tokens in another type, rounded to a third one before."""

    def cast(x):
        return x.to(through or dtype).to(dtype)

    shown = {name: cast(getattr(image, name)()) for name in ("states", "key", "attention")}
    return replace(
        image,
        features=cast(image.features),
        text=cast(image.text),
        **{name: lambda x=x: x for name, x in shown.items()},
    )


def best(score, count):
    """The indices of the largest of a list, ascending; ties go to the lower one."""
    return sorted(sorted(range(len(score)), key=lambda i: (-score[i], i))[:count])


def check(choice, image, kept, into=None, means=None):
    """A choice keeps these tokens, merges those, and drops the others.

    Args:
        choice: The choice.
        image: Among whose tokens.
        kept: Those that stay, ascending.
        into: Which of the others goes into which one.
        means: Features of those that stay and are not as they were, by token; None where no method merges.
    """
    into = into or {}
    n = len(image.features)
    assert choice.index.tolist() == kept
    assert choice.index.dtype == choice.group.dtype == torch.int64
    assert choice.group.tolist() == [i if i in kept else into.get(i, -1) for i in range(n)]
    if means is None:
        assert choice.features is None
        return
    features = image.features[choice.index] if choice.features is None else choice.features
    for k, i in enumerate(kept):
        torch.testing.assert_close(features[k], means.get(i, image.features[i]))
