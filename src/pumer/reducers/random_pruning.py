"""Random pruning: what is left of a method's merit when its choice is left to chance."""

from typing import ClassVar

import torch
from torch import Tensor

from pumer.reducers.base import KEYS, Count
from pumer.reducers.cues import Cues
from pumer.reducers.layered import ScoringConfig
from pumer.reducers.tables import integers, ranks
from pumer.utils.config import config

_WORD = 2**32
_FACTOR = 0x9E3779B1  # a prime; its powers give each head a factor of its own


@config
class RandomPruningConfig(ScoringConfig):
    """Prune image tokens at random.

    A sample must get the same tokens in any batch and in any run, so chance is a hash: of the seed, the layer, a
    token's rank, and which token has the largest first key in each head, which differs from image to image.

    Attributes:
        seed: Another seed prunes other tokens; 0 or more.
    """

    seed: Count = 0

    method: ClassVar[str] = "random"
    needs: ClassVar[frozenset[str]] = frozenset({KEYS})

    def score(self, cues: Cues) -> Tensor:
        """24 bits of the hash, which float32 holds exactly."""
        mask = cues.image_mask
        largest = cues.image_key[..., 0].masked_fill(~mask[:, None], -torch.inf).argmax(dim=2)
        heads = integers(mask.device, *(pow(_FACTOR, head, _WORD) >> 1 for head in range(1, largest.shape[1] + 1)))
        state = (largest * heads).sum(dim=1, keepdim=True) + (self.seed * 1009 + cues.layer) * 1_000_003 % _WORD
        score = _scramble(_scramble(state) + ranks(mask.shape[1], mask.device) * _FACTOR)
        return (score >> 8).to(torch.float32)


def _scramble(x: Tensor) -> Tensor:
    """The finaliser of MurmurHash3 for 32 bits: changing any bit of ``x`` changes half of the result's."""
    x = x & (_WORD - 1)
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & (_WORD - 1)
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & (_WORD - 1)
    return x ^ (x >> 16)
