"""The order of examples."""

import pytest

from pumer.training.sampler import EpochSampler


class Numbers(list):
    """Stands in for examples: a length and an epoch."""

    epoch = 0


@pytest.mark.parametrize("count", [24, 21, 7])
def test_order_is_new_in_every_epoch_and_whole(count):
    numbers = Numbers(range(count))
    orders = []
    for numbers.epoch in (0, 1, 0):
        orders.append(list(EpochSampler(numbers, seed=0, per_step=8)))
        assert len(orders[-1]) == len(EpochSampler(numbers, seed=0, per_step=8)) == -(-count // 8) * 8
        assert sorted(orders[-1][:count]) == numbers
        assert set(orders[-1]) == set(numbers)
    assert orders[0] == orders[2] != orders[1]
    assert orders[0] != list(EpochSampler(numbers, seed=1, per_step=8))
