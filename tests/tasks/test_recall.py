import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pumer.tasks.recall import best_of_columns, best_of_rows


def by_hand(row, count):
    """Candidates taken one by one: always the best that is left, of equals the first."""
    left, found = list(range(len(row))), []
    while left and len(found) < count:
        found.append(max(left, key=lambda candidate: (row[candidate], -candidate)))
        left.remove(found[-1])
    return found


@given(st.integers(1, 9), st.integers(1, 30), st.integers(1, 12), st.integers(0, 10_000), st.sampled_from([2, 1000]))
def test_best_equals_picking_one_by_one(rows, columns, count, seed, values):
    scores = np.random.default_rng(seed).integers(values, size=(rows, columns)).astype(np.float32)  # 2: many ties
    assert [list(best) for best in best_of_rows(scores, count)] == [by_hand(list(row), count) for row in scores]
    assert [list(best) for best in best_of_columns(scores, count)] == [by_hand(list(row), count) for row in scores.T]


def test_more_columns_than_a_block():
    scores = np.random.default_rng(0).normal(size=(12, 2500)).astype(np.float32)
    best = np.stack(list(best_of_columns(scores, 3)))
    assert best.shape == (2500, 3)
    assert np.array_equal(best[:, 0], scores.argmax(axis=0))
