"""PyramidDrop: the deeper in a decoder, the fewer image tokens, by what the end of the prompt attends to."""

from typing import ClassVar, Literal

from torch import Tensor

from pumer.reducers.base import LAST_ROW
from pumer.reducers.cues import Cues
from pumer.reducers.layered import ScoringConfig
from pumer.utils.config import config


@config
class PyramidDropConfig(ScoringConfig):
    """At the end of each stage, keep those of the remaining image tokens that the last token attends to most.

    Source: Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy
    Reduction", CVPR 2025, section 3.2. The paper keeps half in each of four stages of 32 layers: layers=[7, 15, 23],
    prune_ratio=0.5.

    Differs from the paper: the attention is that of the stage's last layer, which is there already, not that of the
    next one's projections; the last token is that of the prompt, after which a chat template may have put its own.

    Attributes:
        layers: 0-based layers, the last of each stage but the final one.
        prune_ratio: Fraction to prune in each, of the image tokens that are left by then, in [0, 1).
    """

    stack: Literal["decoder"] = "decoder"

    method: ClassVar[str] = "pyramiddrop"
    stacks: ClassVar[tuple[str, ...]] = ("decoder",)
    needs: ClassVar[frozenset[str]] = frozenset({LAST_ROW})

    def score(self, cues: Cues) -> Tensor:
        """Attention of the last token, averaged over heads."""
        return cues.last_row().mean(dim=1)
