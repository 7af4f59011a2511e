"""Settings of `pumer visualize`."""

from pathlib import Path

from pumer.settings.common import File, NewFile, ReadingJob, Reduction
from pumer.utils.config import config
from pumer.utils.errors import InputError


@config
class VisualizeConfig(ReadingJob):
    """Settings of `pumer visualize`. Settings left at null are those of the model's own training.

    Attributes:
        images: image files: one, two for a model for pairs, or several for a model that generates.
        question: the text.
        out: the PNG file to write.
        reduction: replaces the model's own: a mapping with `method`, or the name of a method.
        force: replace a drawing that is there already.
    """

    images: tuple[File, ...]
    question: str
    out: NewFile = Path("tokens.png")
    reduction: Reduction | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.out.suffix.lower() != ".png":
            raise InputError(f"{self.out} must end in .png, because a PNG file is written")
