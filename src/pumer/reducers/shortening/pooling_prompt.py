"""Average pooling before the decoder: square blocks of an image become one token each, whatever they show."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field

from pumer.reducers.shortening.base import Choice, ImageTokens, ShorteningConfig
from pumer.utils.config import config


@config
class PoolingPromptConfig(ShorteningConfig):
    """Average square blocks of each tile or frame; the mean stands where the first token of its block stood.

    Blocks at the right and at the lower edge may be smaller. Tokens that stand nowhere in the image stay.

    Attributes:
        block: Rows and columns of a block; 1 changes nothing.
    """

    block: Annotated[int, Field(ge=1)] = 2

    method: ClassVar[str] = "pooling-prompt"
    prunes: ClassVar[bool] = False

    def choose(self, image: ImageTokens) -> Choice:
        """Average the blocks."""
        cell = image.cell
        own = torch.arange(len(cell), device=cell.device)
        side = cell.new_tensor([1, self.block, self.block])
        there = (cell >= 0).all(dim=1)
        # a token that stands nowhere is a block by itself, in a tile that no other token has
        block = torch.where(there[:, None], cell.div(side, rounding_mode="floor"), torch.stack([-1 - own, own, own], 1))
        _, number = block.unique(dim=0, return_inverse=True)
        first = own.new_full((len(own),), len(own)).scatter_reduce(0, number, own, "amin")
        return Choice.merged(first[number], image.features)
