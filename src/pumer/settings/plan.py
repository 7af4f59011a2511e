"""Settings of `pumer plan`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pumer.settings.common import known_method, known_preset
from pumer.utils.arguments import in_range
from pumer.utils.limits import check_checkpoint


@dataclass(frozen=True)
class PlanConfig:
    """`pumer plan`.

    Attributes:
        model: "preset:vilt-b32" (random weights, no download), or a folder or hub name, of which only ``config.json``
            and ``reduction.json`` are read.
        reduction: Method and settings; None for what the checkpoint was saved with.
        image_size: Height and width in pixels, a multiple of the patch size; None for the model's own.
        text_length: Words of the text, special tokens counted; None for as many as the checkpoint was trained with,
            else 32 (or its positions, if fewer).
    """

    model: str = "preset:vilt-b32"
    reduction: dict[str, Any] | str | None = None
    image_size: int | None = None
    text_length: int | None = None

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        in_range(self)
        known_preset(self.model)
        known_method(self.reduction)

    @property
    def written(self) -> tuple[Path, ...]:
        """What is written: nothing."""
        return ()

    def check_places(self) -> None:
        """Refuse folders that are not there."""
        check_checkpoint(self.model, self.image_size)
