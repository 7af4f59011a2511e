"""Deterministic distributed sampler: the order of examples depends on seed, epoch and step alone, not on processes."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from pumer.tasks.loading import Examples


class EpochSampler(Sampler[int]):
    """The training examples in a new order in every epoch, filled up to whole steps with the first of them again.

    Neighbours make up a step of `per_step` examples, however it is cut: into one batch, into accumulated ones, or over
    several processes. As every step is whole, so is every cut of it, and each of its examples weighs the same.
    """

    def __init__(self, examples: Examples, seed: int, per_step: int) -> None:
        self.examples, self.seed, self.per_step = examples, seed, per_step

    def __len__(self) -> int:
        """Positions in an epoch, repeated ones counted."""
        return -(-len(self.examples) // self.per_step) * self.per_step

    def __iter__(self) -> Iterator[int]:
        """Positions of the examples in this epoch's order."""
        order = np.random.default_rng((self.seed, self.examples.epoch)).permutation(len(self.examples))
        return iter(np.resize(order, len(self)).tolist())
