"""Efficient Video Sampling against a loop over cells."""

import torch
from by_hand import cosine
from hypothesis import given
from hypothesis import strategies as st
from shortening.images import SEEDS, best, check, image_tokens

from pumer.reducers.shortening.evs import EVSConfig


@given(st.integers(1, 40), st.one_of(st.just(0.0), st.floats(0.05, 0.95)), st.integers(1, 4), st.booleans(), SEEDS)
def test_what_has_not_changed_goes(n, ratio, columns, shuffled, seed):
    image, config = image_tokens(n, seed, columns=columns), EVSConfig(prune_ratio=ratio)
    random = torch.Generator().manual_seed(seed)
    image.cell[torch.rand(n, generator=random) < 0.1] = -1
    if shuffled:
        image.cell[:] = image.cell[torch.randperm(n, generator=random)]
    at = {tuple(cell): i for i, cell in enumerate(image.cell.tolist()) if cell[0] >= 0}
    change = []
    for i, (frame, row, column) in enumerate(image.cell.tolist()):
        before = at.get((frame - 1, row, column)) if frame > 0 else None
        change.append(9 if before is None else 1 - cosine(image.features[i], image.features[before]))
    count = max(config.kept(n), sum(one == 9 for one in change))
    check(config.choose(image), image, best(change, count))


def test_a_still_scene_is_shown_once():
    """Three frames of eight tokens: the second frame changes one token, the third one none."""
    image = image_tokens(24, 0)
    image.features[8:16] = image.features[:8]
    image.features[11] = -image.features[3]
    image.features[16:] = image.features[8:16].clone()
    check(EVSConfig(prune_ratio=15 / 24).choose(image), image, [*range(8), 11])
    check(EVSConfig(prune_ratio=0.5).choose(image), image, [*range(11), 11])
    check(EVSConfig(prune_ratio=0.9).choose(image), image, list(range(8)))
