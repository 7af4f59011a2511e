"""Simignore: image tokens that resemble no word are ignored."""

from typing import ClassVar

from pumer.functional import unit
from pumer.reducers.shortening.base import Choice, ImageTokens, RatioShorteningConfig, largest
from pumer.utils.config import config


@config
class SimIgnoreConfig(RatioShorteningConfig):
    """Keep the image tokens that are most similar to a word.

    Similarity is the cosine of an image token's features and a word's embedding; the most similar word counts. Without
    a word, the first tokens stay.

    Source: Zhang, Zeng et al., "Enhancing Multimodal Large Language Models Complex Reason via Similarity Computation",
    AAAI 2025.

    Differs from the paper: the other tokens leave the prompt; there they are masked.
    """

    method: ClassVar[str] = "simignore"

    def choose(self, image: ImageTokens) -> Choice:
        """Rank the tokens by their most similar word."""
        features, text = unit(image.features.detach()), unit(image.text)
        n = len(features)
        score = (features @ text.to(features.dtype).T).amax(dim=1) if len(text) else features.new_zeros(n)
        return Choice.of(largest(score, self.kept(n)), n)
