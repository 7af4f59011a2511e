"""From the scores of all pairs of a gallery to what each query finds: the best candidates, in order."""

from collections.abc import Iterator

import numpy as np

CUTOFFS = (1, 5, 10)
"""A query is answered at k if one of its true candidates is among the k best."""

_BLOCK = 1024


def best_of_rows(scores: np.ndarray, count: int = max(CUTOFFS)) -> Iterator[np.ndarray]:
    """The best candidates of each row.

    Args:
        scores: (queries, candidates); may be a memory map, of which one row at a time is read.
        count: how many, or all where there are fewer.

    Yields:
        Per query its best columns, best first; of equal scores the lower column first.
    """
    for row in scores:
        yield _best(np.asarray(row)[None], count)[0]


def best_of_columns(scores: np.ndarray, count: int = max(CUTOFFS)) -> Iterator[np.ndarray]:
    """The same with columns as queries and rows as candidates; blocks of columns are read at a time."""
    for start in range(0, scores.shape[1], _BLOCK):
        yield from _best(np.ascontiguousarray(scores[:, start : start + _BLOCK].T), count)


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]
