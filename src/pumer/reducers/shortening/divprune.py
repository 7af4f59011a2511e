"""DivPrune: the tokens that stay are as different from one another as can be."""

from typing import ClassVar

import torch
from torch import Tensor

from pumer.functional import unit
from pumer.reducers.shortening.base import Choice, ImageTokens, RatioShorteningConfig
from pumer.utils.config import config

_SAME = 1e-5  # no distance at all: less is rounding


@config
class DivPruneConfig(RatioShorteningConfig):
    """Keep the image tokens whose least distance to one another is largest, found greedily.

    The first one is the token farthest from its nearest neighbour; each next one is the token farthest from the
    nearest of those chosen before. A distance is one minus the cosine similarity of features. The text is not looked
    at.

    Source: Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025.
    """

    method: ClassVar[str] = "divprune"

    def choose(self, image: ImageTokens) -> Choice:
        """Choose one token after the other; forms the matrix ``(n, n)`` of distances."""
        features = unit(image.features.detach()).nan_to_num()
        n = len(features)
        distance = 1 - features @ features.T
        distance = torch.minimum(distance, distance.T)  # rounding must not decide between two that are neighbours
        itself = torch.eye(n, dtype=torch.bool, device=distance.device)
        distance = distance.masked_fill(distance < _SAME, 0).masked_fill(itself, torch.inf)
        nearest = distance.amin(dim=1)
        chosen: list[Tensor] = []
        for step in range(self.kept(n)):
            best = nearest.argmax(keepdim=True)
            row = distance.index_select(0, best)[0]
            nearest = torch.minimum(nearest, row) if step else row
            nearest.index_fill_(0, best, -torch.inf)
            chosen.append(best)
        return Choice.of(torch.cat(chosen), n)
