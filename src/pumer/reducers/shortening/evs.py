"""Efficient Video Sampling: what has not changed since the frame before is not shown again."""

from typing import ClassVar

import torch

from pumer.functional import unit
from pumer.reducers.shortening.base import Choice, ImageTokens, RatioShorteningConfig, largest
from pumer.utils.config import config


@config
class EVSConfig(RatioShorteningConfig):
    """For videos: remove the tokens that are most like the one at the same place in the frame before.

    How different two tokens are is one minus the cosine similarity of their features. A token that has none before it
    stays: all of the first frame, so that less than the fraction is removed where that is large. The tiles of a still
    image count as frames.

    Source: Bagrov et al., "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference",
    2025 (arXiv 2510.14624).

    Differs from the paper: features are compared, not pixels.
    """

    method: ClassVar[str] = "evs"

    def choose(self, image: ImageTokens) -> Choice:
        """Rank the tokens by how much has changed."""
        features, cell = unit(image.features.detach()), image.cell
        n, there = len(features), (cell >= 0).all(dim=1)
        frames, rows, columns = (int(most) + 2 for most in cell.amax(dim=0))
        place = ((cell + 1).clamp(min=0) * cell.new_tensor([rows * columns, columns, 1])).sum(dim=1)
        at = torch.full((frames * rows * columns,), -1, device=cell.device)
        at[place[there]] = torch.arange(n, device=cell.device)[there]
        before = at[(place - rows * columns).clamp(min=0)]
        has = there & (before >= 0)
        change = (features - features[before]).square().sum(dim=1).masked_fill(~has, torch.inf)
        count = max(self.kept(n), n - int(has.sum()))
        return Choice.of(largest(change, count), n)
