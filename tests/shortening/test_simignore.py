"""Simignore against a loop over words."""

from by_hand import cosine
from hypothesis import given
from hypothesis import strategies as st
from shortening.images import RATIOS, SEEDS, TOKENS, best, check, image_tokens

from pumer.reducers.shortening.simignore import SimIgnoreConfig


@given(TOKENS, RATIOS, st.integers(0, 4), SEEDS)
def test_tokens_that_resemble_a_word_stay(n, ratio, words, seed):
    image, config = image_tokens(n, seed, words=words), SimIgnoreConfig(prune_ratio=ratio)
    score = [max([cosine(token, word) for word in image.text], default=0) for token in image.features]
    check(config.choose(image), image, best(score, config.kept(n)))
