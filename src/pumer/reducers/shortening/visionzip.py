"""VisionZip: tokens that the vision encoder attends to, and a few means of all the others."""

from typing import ClassVar

import torch

from pumer.functional import ordered, unit
from pumer.reducers.base import Ratio
from pumer.reducers.shortening.base import Choice, ImageTokens, RatioShorteningConfig, largest
from pumer.utils.config import config


@config
class VisionZipConfig(RatioShorteningConfig):
    """Keep the image tokens that receive most attention in the vision encoder, and merge the rest into a few.

    The first are called dominant, the others contextual: evenly spaced ones of the rest, each of which becomes the
    mean of itself and of the tokens whose keys are most like its own. The text is not looked at.

    Source: Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025. Of 64
    tokens, its experiments with LLaVA-1.5 make 10 contextual, of 192 tokens 30.

    Differs from the paper: tokens are merged as they enter the language model, after the projector, and keep the order
    and the positions they had in the image; similarity is the cosine of keys; [CLS] itself is not among the tokens.

    Attributes:
        contextual_ratio: Fraction of the tokens left that are contextual, in [0, 1).
    """

    contextual_ratio: Ratio = 5 / 32

    method: ClassVar[str] = "visionzip"

    def choose(self, image: ImageTokens) -> Choice:
        """Select the dominant tokens, and merge the others into the contextual ones."""
        n = len(image.features)
        count = self.kept(n)
        contextual = round(self.contextual_ratio * count)
        dominant = largest(image.attention(), count - contextual)
        if contextual == 0:
            return Choice.of(dominant, n)
        group = torch.arange(n, device=dominant.device)
        stays = torch.zeros_like(group, dtype=torch.bool).index_fill(0, dominant, True)
        rest = ordered(stays[None])[0, : n - len(dominant)]
        target = rest[torch.arange(contextual, device=rest.device) * len(rest) // contextual]
        key = unit(image.key())
        group[rest] = target[(key[rest] @ key[target].T).argmax(dim=1)]
        group[target] = target
        return Choice.merged(group, image.features, count)
