"""VisPruner: tokens that the vision encoder attends to, and those of the rest that repeat no other."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from pumer.functional import unit
from pumer.reducers.shortening.base import Choice, ImageTokens, RatioShorteningConfig, largest
from pumer.utils.config import config


@config
class VisPrunerConfig(RatioShorteningConfig):
    """Keep the image tokens that receive most attention in the vision encoder, and diverse ones of the others.

    The others lose their duplicates in rounds: those of even rank look for the most similar one of odd rank, and the
    ones that find the most similar go. Similarity is the cosine of the vision encoder's states. The text is not
    looked at.

    Source: Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs",
    ICCV 2025.

    Differs from the paper: a round removes up to half of the tokens of even rank, so that a few rounds are enough.

    Attributes:
        important_ratio: Fraction of the tokens left that are chosen by attention, in [0, 1].
    """

    important_ratio: Annotated[float, Field(ge=0, le=1)] = 0.5

    method: ClassVar[str] = "vispruner"

    def choose(self, image: ImageTokens) -> Choice:
        """Select the important tokens, and remove duplicates among the others."""
        n = len(image.features)
        count = self.kept(n)
        important = largest(image.attention(), round(self.important_ratio * count))
        rest = torch.ones(n, dtype=torch.bool, device=important.device).index_fill(0, important, False).nonzero()[:, 0]
        diverse = rest[distinct(image.states()[rest], count - len(important))] if len(important) < count else rest[:0]
        return Choice.of(torch.cat([important, diverse]), n)


def distinct(states: Tensor, count: int) -> Tensor:
    """Remove the most similar tokens, round by round, until so many are left.

    Args:
        states: ``(m, Dv)``.
        count: How many to leave, at least 1.

    Returns:
        ``(count,)`` int64, ascending.
    """
    states = unit(states)
    left = torch.arange(len(states), device=states.device)
    while len(left) > count:
        even, odd = left[0::2], left[1::2]
        going = min(len(left) - count, (len(even) + 1) // 2)
        similar = (states[even] @ states[odd].T).amax(dim=1)
        stays = torch.ones_like(left, dtype=torch.bool)
        stays[2 * largest(similar, going)] = False
        left = left[stays]
    return left
