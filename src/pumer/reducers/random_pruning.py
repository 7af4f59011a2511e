"""Random pruning: what is left of a method's merit when its choice is left to chance."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pumer.errors import InputError
from pumer.reducers.base import KEYS, Place, Reducer
from pumer.reducers.decisions import prune_to
from pumer.reducers.layered import PruningConfig
from pumer.tables import ranks
from pumer.tokens import Cues, Decision

_PRIME = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class RandomPruningConfig(PruningConfig):
    """Prune image tokens at random.

    Attributes:
        seed: Another seed prunes other tokens; 0 or more.
    """

    seed: int = 0

    method: ClassVar[str] = "random"

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"seed of the reduction is {self.seed!r}; give an integer, 0 or more")

    def reducer(self, place: Place) -> Reducer | None:
        """Each layer draws anew."""
        return RandomPruner(self, place[1]) if self.prune_ratio else None


@dataclass(frozen=True)
class RandomPruner:
    """The pruning of one layer.

    A sample must get the same tokens in any batch and in any run, so chance is a hash: of the seed, the layer, a
    token's rank, and which token has the largest first key in each head, which differs from picture to picture.
    """

    config: RandomPruningConfig
    layer: int
    needs: ClassVar[frozenset[str]] = frozenset({KEYS})

    def decide(self, cues: Cues) -> Decision:
        """Prune image tokens; text stays."""
        mask = cues.image_mask
        largest = cues.image_key[..., 0].masked_fill(~mask[:, None], -torch.inf).argmax(dim=2)
        state = torch.full_like(largest[:, :1], (self.config.seed * 1009 + self.layer) * 1_000_003 % _PRIME)
        for head in largest[:, :, None].unbind(dim=1):
            state = _scramble(state + head)
        score = (_scramble(state + ranks(mask.shape[1], mask.device)) >> 7).to(torch.float32)  # exact
        return prune_to(cues, self.config, score)


def _scramble(x: Tensor) -> Tensor:
    """A hash of non-negative integers, below 2 ** 31; two rounds, for after one neighbours are spread evenly."""
    for _ in range(2):
        x = (x % _PRIME * 48_271 + 12_820_163) % _PRIME
        x = ((x ^ (x >> 15)) * 69_621) % _PRIME
    return x
