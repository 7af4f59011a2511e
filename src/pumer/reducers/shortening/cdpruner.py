"""CDPruner: tokens that are relevant to the text, and different from one another, stay."""

from typing import ClassVar

import torch
from torch import Tensor

from pumer.functional import unit
from pumer.reducers.shortening.base import Choice, ImageTokens, RatioShorteningConfig
from pumer.utils.config import config

_NEW = 1e-4  # of a token, the part that those chosen do not span: less is rounding


@config
class CDPrunerConfig(RatioShorteningConfig):
    """Keep the image tokens that a determinantal point process, conditioned on the text, finds most probable.

    Its kernel is the cosine similarity of features, times the relevance of both tokens. A token's relevance is its
    mean cosine similarity to the words, scaled to [0, 1] over the image. The subset of largest determinant is found
    greedily: the next token is the one whose relevance, times the part of it that the chosen ones do not span, is
    largest. Where nothing new is left, the most relevant tokens follow.

    Source: Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in
    MLLMs", NeurIPS 2025; the greedy algorithm is that of Chen et al., "Fast Greedy MAP Inference for Determinantal
    Point Process", NeurIPS 2018.

    Differs from the paper: relevance is always that of the language model's embeddings of the words, never that of a
    text encoder that came with the vision encoder; similarity is that of the features that enter the language model.
    """

    method: ClassVar[str] = "cdpruner"

    def choose(self, image: ImageTokens) -> Choice:
        """Choose one token after the other; forms the kernel ``(n, n)``."""
        features = unit(image.features.detach()).nan_to_num()
        weight, n = relevance(features, image.text), len(features)
        kernel = (features @ features.T).fill_diagonal_(1) * weight * weight[:, None]
        gain, later = kernel.diagonal(), weight - 2  # below every gain
        least = _NEW * gain
        spanned = kernel.new_zeros(self.kept(n), n)  # rows of Cholesky's factor, in the order of choice
        chosen: list[Tensor] = []
        for step, row in enumerate(spanned):
            gain = torch.where(gain > least, gain, later)
            best = gain.argmax(keepdim=True)
            before, scale = spanned[:step], gain.index_select(0, best).rsqrt().nan_to_num()  # 0 for a negative gain
            new = torch.addmv(kernel.index_select(0, best)[0], before.T, before.index_select(1, best)[:, 0], alpha=-1)
            row.copy_(new * scale)
            gain = gain - row.square()
            later.index_fill_(0, best, -torch.inf)
            chosen.append(best)
        return Choice.of(torch.cat(chosen), n)


def relevance(features: Tensor, text: Tensor) -> Tensor:
    """How relevant each token is to the words, in [0, 1]; 1 for all where they do not differ.

    Args:
        features: ``(n, D)``, of length one.
        text: ``(t, D)``.

    Returns:
        ``(n,)``, of the features' type.
    """
    found = features @ unit(text).to(features.dtype).nan_to_num().sum(dim=0) / max(len(text), 1)
    least, most = found.aminmax()
    return torch.where(most > least, (found - least) / (most - least), 1)
