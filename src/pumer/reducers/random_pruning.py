"""Random pruning: what is left of a method's merit when its choice is left to chance."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pumer.reducers.base import KEYS, Place, Reducer
from pumer.reducers.cues import Cues
from pumer.reducers.decisions import prune_to
from pumer.reducers.layered import PruningConfig
from pumer.reducers.tables import integers, ranks
from pumer.tokens import Decision
from pumer.utils.errors import InputError

_WORD = 2**32
_FACTOR = 0x9E3779B1  # a prime; its powers give each head a factor of its own


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
        heads = integers(mask.device, *(pow(_FACTOR, head, _WORD) >> 1 for head in range(1, largest.shape[1] + 1)))
        state = (largest * heads).sum(dim=1, keepdim=True) + (self.config.seed * 1009 + self.layer) * 1_000_003 % _WORD
        score = _scramble(_scramble(state) + ranks(mask.shape[1], mask.device) * _FACTOR)
        return prune_to(cues, self.config, (score >> 8).to(torch.float32))  # 24 bits: exact


def _scramble(x: Tensor) -> Tensor:
    """The finaliser of MurmurHash3 for 32 bits: changing any bit of ``x`` changes half of the result's."""
    x = x & (_WORD - 1)
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & (_WORD - 1)
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & (_WORD - 1)
    return x ^ (x >> 16)
