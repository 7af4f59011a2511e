"""VisPruner against a loop over tokens."""

import pytest
from by_hand import cosine
from hypothesis import given
from hypothesis import strategies as st
from shortening.images import RATIOS, SEEDS, TOKENS, best, check, image_tokens

from pumer.reducers.shortening.vispruner import VisPrunerConfig
from pumer.utils.errors import InputError


def diverse_by_hand(states, left, count):
    """Rounds in which tokens of even rank that have a double of odd rank go."""
    while len(left) > count:
        even, odd = left[::2], left[1::2]
        double = [max(cosine(states[i], states[j]) for j in odd) for i in even]
        going = min(len(left) - count, (len(even) + 1) // 2)
        gone = [even[k] for k in best(double, going)]
        left = [i for i in left if i not in gone]
    return left


@given(TOKENS, RATIOS, st.sampled_from([0, 0.3, 0.5, 1]), SEEDS)
def test_important_tokens_stay_and_diverse_ones(n, ratio, part, seed):
    image, config = image_tokens(n, seed), VisPrunerConfig(prune_ratio=ratio, important_ratio=part)
    count = config.kept(n)
    important = best(image.attention().tolist(), round(part * count))
    rest = [i for i in range(n) if i not in important]
    diverse = diverse_by_hand(image.states(), rest, count - len(important)) if len(important) < count else []
    check(config.choose(image), image, sorted([*important, *diverse]))


def test_duplicates_go():
    """The even ones of the unimportant tokens are copies of the first odd one, but for one."""
    image = image_tokens(10, 0)
    image.attention()[:4] += 100
    states = image.states()
    states[[4, 8]] = states[5].clone()
    check(VisPrunerConfig(prune_ratio=0.2).choose(image), image, [0, 1, 2, 3, 5, 6, 7, 9])


def test_the_fraction_of_important_tokens_is_checked():
    with pytest.raises(InputError, match=r"important_ratio.*1\.5"):
        VisPrunerConfig(important_ratio=1.5)
