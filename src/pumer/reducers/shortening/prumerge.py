"""LLaVA-PruMerge: each image itself says how many of its tokens stand out; these take in the others."""

from typing import ClassVar

import torch

from pumer.reducers.base import Count
from pumer.reducers.shortening.base import Choice, ImageTokens, ShorteningConfig, largest, wide
from pumer.utils.config import config


@config
class PruMergeConfig(ShorteningConfig):
    """Keep the image tokens whose attention in the vision encoder is an outlier, and let them take in similar ones.

    An outlier lies more than one and a half interquartile ranges above the third quartile; without any, the token that
    receives most attention stays. Each token that stays becomes the mean, weighted by attention, of itself and of the
    removed tokens whose keys are most like its own; one removed token may go into several. How much is removed differs
    from image to image. The text is not looked at.

    Source: Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", ICCV 2025.

    Differs from the paper: tokens are merged as they enter the language model, after the projector; the evenly spaced
    tokens of PruMerge+ are spaced in the order of the prompt.

    Attributes:
        even_tokens: Evenly spaced tokens to keep besides, for each outlier: 0 is PruMerge, 3 comes near PruMerge+.
        neighbors: Removed tokens that one that stays takes in.
    """

    even_tokens: Count = 0
    neighbors: Count = 32

    method: ClassVar[str] = "prumerge"

    def choose(self, image: ImageTokens) -> Choice:
        """Find the outliers, and average around them."""
        n, attention, x = len(image.features), wide(image.attention()), wide(image.features)
        low, high = attention.quantile(attention.new_tensor([0.25, 0.75])).unbind()
        stays = attention > high + 1.5 * (high - low)
        stays[largest(attention, 1)] = True
        even = min(self.even_tokens * int(stays.sum()), n)
        stays[torch.arange(even, device=stays.device) * n // max(even, 1)] = True
        kept, gone = stays.nonzero()[:, 0], (~stays).nonzero()[:, 0]
        if min(self.neighbors, len(gone)) == 0:
            return Choice.of(kept, n)
        key = wide(image.key())
        similarity = key[kept] @ key[gone].T
        nearest = similarity.sort(dim=1, descending=True, stable=True)[1][:, : self.neighbors]
        taken = torch.zeros_like(similarity, dtype=torch.bool).scatter_(1, nearest, True)
        attention = attention.to(x.dtype)
        weight, own = taken * attention[gone], attention[kept, None]
        total = own + weight.sum(dim=1, keepdim=True)
        mean = torch.where(total > 0, (own * x[kept] + weight @ x[gone]) / total, x[kept])
        group = torch.full((n,), -1, device=kept.device).index_copy(0, kept, kept)
        most_similar = kept[similarity.masked_fill(~taken, -torch.inf).argmax(dim=0)]
        group[gone] = most_similar.where(taken.any(dim=0), -1)
        return Choice(kept, group, mean.to(image.features.dtype))
