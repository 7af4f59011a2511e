"""Average pooling against a loop over cells."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shortening.images import SEEDS, check, image_tokens

from pumer.reducers.shortening.pooling_prompt import PoolingPromptConfig
from pumer.utils.errors import InputError


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 5), st.booleans(), SEEDS)
def test_blocks_are_averaged(n, block, columns, shuffled, seed):
    image, random = image_tokens(n, seed, columns=columns), torch.Generator().manual_seed(seed)
    image.cell[torch.rand(n, generator=random) < 0.1] = -1
    if shuffled:
        image.cell[:] = image.cell[torch.randperm(n, generator=random)]
    blocks = {}
    for i, (tile, row, column) in enumerate(image.cell.tolist()):
        key = (tile, row // block, column // block) if tile >= 0 else i
        blocks.setdefault(key, []).append(i)
    into = {i: group[0] for group in blocks.values() for i in group[1:]}
    means = {group[0]: image.features[group].mean(dim=0) for group in blocks.values()}
    kept = sorted(group[0] for group in blocks.values())
    check(PoolingPromptConfig(block=block).choose(image), image, kept, into, means)


def test_a_tile_of_two_rows_and_four_columns():
    image = image_tokens(8, 0)
    choice = PoolingPromptConfig().choose(image)
    assert choice.index.tolist() == [0, 2] and choice.group.tolist() == [0, 0, 2, 2] * 2


def test_a_block_has_a_side():
    with pytest.raises(InputError, match=r"block.*0"):
        PoolingPromptConfig(block=0)
