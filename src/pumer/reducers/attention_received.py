"""Pruning by the attention that a token gets from all others, estimated from a few of them."""

from typing import ClassVar

import torch
from torch import Tensor

from pumer.reducers.base import SAMPLED_ROWS
from pumer.reducers.cues import Cues
from pumer.reducers.layered import ScoringConfig
from pumer.utils.config import config


@config
class AttentionReceivedConfig(ScoringConfig):
    """Keep the image tokens that receive most attention in the layer.

    Source: Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference", NeurIPS 2023, sums the columns
    of the attention matrix; Kim et al., "Learned Token Pruning for Transformers", KDD 2022, did so for encoders.

    Differs from the papers: the sum is over a sample of evenly spaced rows, so that no (N, N) matrix is formed.
    """

    method: ClassVar[str] = "attention-received"
    needs: ClassVar[frozenset[str]] = frozenset({SAMPLED_ROWS})
    rows: ClassVar[int] = 32
    """At most so many tokens are asked, all where a sample has fewer."""

    def score(self, cues: Cues) -> Tensor:
        """Attention of the sampled rows, summed over them and over heads."""
        rows, there = cues.sampled_rows(self.rows)
        return torch.einsum("bhsv,bs->bv", rows, there.to(rows.dtype))
