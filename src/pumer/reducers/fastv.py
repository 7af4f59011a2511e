"""FastV: one cut, early in a decoder, by what the end of the prompt attends to."""

from typing import ClassVar

from pumer.reducers.pyramiddrop import PyramidDropConfig
from pumer.utils.config import config
from pumer.utils.errors import InputError


@config
class FastVConfig(PyramidDropConfig):
    """After one layer, keep the image tokens that the last token of the prompt attends to most.

    Source: Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024, section 4. The paper's K counts layers
    that see the whole image: its K = 2, R = 50% is layers=[1], prune_ratio=0.5.

    Differs from the paper: its text averages the attention from all tokens; its released code looks at the last one's,
    and so does this. `pumer.AttentionReceivedConfig` is the other one.

    Attributes:
        layers: One 0-based layer: the last that sees the whole image.

    Raises:
        InputError: For more than one layer.
    """

    method: ClassVar[str] = "fastv"

    def __post_init__(self) -> None:
        """Refuse a second layer."""
        super().__post_init__()
        if len(self.layers) > 1:
            raise InputError(
                f"layers is {list(self.layers)}, but FastV prunes once; give one layer, or method 'pyramiddrop'"
            )
