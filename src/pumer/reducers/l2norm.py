"""Pruning by the length of keys alone: attention sinks and what else stands out have keys of unusual length."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from pumer.reducers.base import KEYS
from pumer.reducers.cues import Cues
from pumer.reducers.layered import ScoringConfig
from pumer.utils.config import config


@config
class L2NormConfig(ScoringConfig):
    """Keep the image tokens whose keys are longest or shortest.

    Source: Devoto et al., "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", EMNLP 2024, keeps
    those of smallest norm in each head of a language model's cache.

    Differs from the paper: one choice for all heads, by the mean norm.

    Attributes:
        keep: "smallest" or "largest" norms.
    """

    keep: Literal["smallest", "largest"] = "smallest"

    method: ClassVar[str] = "l2norm"
    needs: ClassVar[frozenset[str]] = frozenset({KEYS})

    def score(self, cues: Cues) -> Tensor:
        """The L2 norm of a token's keys, averaged over heads; negative where the smallest are kept."""
        key = cues.image_key
        dtype = torch.promote_types(key.dtype, torch.float32)
        norm: Tensor = torch.linalg.vector_norm(key, dim=3, dtype=dtype).mean(dim=1)
        return norm if self.keep == "largest" else -norm
