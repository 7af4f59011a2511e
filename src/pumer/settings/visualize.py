"""Settings of `pumer visualize`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pumer.settings.common import File, NewFile, ReadingJob, Reduction
from pumer.utils.config import config
from pumer.utils.errors import InputError
from pumer.utils.places import check_not_exported


@config
class VisualizeConfig(ReadingJob):
    """Settings of `pumer visualize`. Settings left at null are those of the model's own training.

    Attributes:
        images: image files: one, two for a model for pairs, or several for a model that generates.
        questions: the texts, each about all images; a drawing below the other.
        saliency: draw the scores by which each layer chooses as well, where the method scores image tokens.
        out: the file to write: .png, .svg, or .gif for an animation with a frame for each reduction.
        reduction: replaces the model's own: a mapping with `method`, or the name of a method.
        force: replace a drawing that is there already.
    """

    images: tuple[File, ...]
    questions: Annotated[tuple[str, ...], Field(min_length=1)]
    saliency: bool = False
    out: NewFile = Path("tokens.png")
    reduction: Reduction | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.out.suffix.lower() not in (".png", ".svg", ".gif"):
            raise InputError(f"{self.out} must end in .png, .svg or .gif, which is what it then holds")

    def check_places(self) -> None:
        """Refuse files and folders that are missing or not writable, and an exported model."""
        super().check_places()
        check_not_exported(self.model, "visualize")
