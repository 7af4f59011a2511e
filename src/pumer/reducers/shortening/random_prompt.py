"""Random shortening: what is left of a method's merit when its choice is left to chance."""

from random import Random
from typing import ClassVar

import torch

from pumer.reducers.base import Count
from pumer.reducers.shortening.base import Choice, ImageTokens, RatioShorteningConfig
from pumer.utils.config import config

_COLUMNS = 16


@config
class RandomPromptConfig(RatioShorteningConfig):
    """Keep image tokens by chance.

    An image must keep the same tokens in any batch and in any run, so chance follows from the seed and from which token
    is largest in each of the first 16 features, which differs from image to image.

    Attributes:
        seed: Another seed keeps other tokens; 0 or more.
    """

    seed: Count = 0

    method: ClassVar[str] = "random-prompt"

    def choose(self, image: ImageTokens) -> Choice:
        """Draw the tokens that stay."""
        n, features = len(image.features), image.features
        chance = Random(f"{self.seed} {features[:, :_COLUMNS].argmax(dim=0).tolist()}")
        return Choice.of(torch.tensor(chance.sample(range(n), self.kept(n)), device=features.device), n)
