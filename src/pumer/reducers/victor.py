"""Victor: a few learned registers take in what an image shows; after a layer, they alone go on."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pumer.reducers.base import Place, Reducer
from pumer.reducers.cues import Cues
from pumer.reducers.decisions import prune_to
from pumer.reducers.layered import LayeredConfig
from pumer.reducers.learned import LearnedReducer
from pumer.reducers.tables import ranks
from pumer.tokens import Decision
from pumer.utils.config import config
from pumer.utils.errors import InputError


@config
class VictorConfig(LayeredConfig):
    """Learned registers after the image tokens, which are all dropped after a layer.

    Source: Wen et al., "Efficient Vision-Language Models by Summarizing Visual Tokens into Compact Registers", 2024
    (arXiv 2410.14072). With 8 registers it loses less than 4% in the paper, after training.

    Differs from the paper: no slots are added to a prompt; the last image tokens of a prompt are its registers, by
    learned vectors that are added to their embeddings. They see all images before them, and keep what they show.

    Attributes:
        layers: One 0-based layer: the last that sees the whole image.
        registers: How many; a prompt with fewer image tokens keeps them all.

    Raises:
        InputError: For more than one layer.
    """

    stack: Literal["decoder"] = "decoder"
    registers: Annotated[int, Field(ge=1)] = 8

    method: ClassVar[str] = "victor"
    stacks: ClassVar[tuple[str, ...]] = ("decoder",)

    def __post_init__(self) -> None:
        """Refuse a second layer."""
        super().__post_init__()
        if len(self.layers) > 1:
            raise InputError(f"layers is {list(self.layers)}, but Victor drops the image once; give one layer")

    def kept(self, n: int) -> int:
        """Image tokens left of ``n``: the registers."""
        return min(n, self.registers)

    def reducers(self) -> dict[Place, Reducer]:
        """None without weights."""
        return {}

    def learned(self, widths: Mapping[str, int]) -> dict[Place, Reducer]:
        """The registers; the same ones every time, until they are trained."""
        return {place: VisualRegisters(self, widths[self.stack]) for place in self.places()}


class VisualRegisters(LearnedReducer):
    """Makes registers of the last image tokens, and drops the others; in training as well."""

    needs: frozenset[str] = frozenset()

    def __init__(self, config: VictorConfig, width: int) -> None:
        """Registers that change nothing yet: they learn from what their tokens show.

        Args:
            config: How many.
            width: ``D``.
        """
        super().__init__()
        self.config = config
        self.registers = nn.Parameter(torch.zeros(config.registers, width))

    def enter(self, states: Tensor, image: Tensor) -> Tensor:
        """Turn the last image tokens of each prompt into registers.

        Args:
            states: ``(B, N, D)``, the embeddings that enter the first layer.
            image: ``(B, N)`` bool, which tokens are those of images; no padding.

        Returns:
            ``(B, N, D)``: the last image token with the last register added, the one before with the one before.
        """
        after = image.sum(dim=1, keepdim=True) - image.cumsum(dim=1)
        rank = len(self.registers) - 1 - after
        registers = torch.embedding(self.registers, rank.clamp(min=0)).to(states.dtype)
        return torch.where((image & (rank >= 0))[:, :, None], states + registers, states)

    def decide(self, cues: Cues) -> Decision:
        """Keep the last image tokens; text stays."""
        rank = ranks(cues.tokens.slots[1], cues.image_mask.device)
        return prune_to(cues, self.config, rank.to(torch.float32).expand(cues.image_mask.shape))
