"""Settings of `pumer visualize`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pumer.settings.common import Resize, known_method, known_task
from pumer.utils.arguments import in_range, new_files, there
from pumer.utils.errors import InputError
from pumer.utils.limits import check_checkpoint, checkpoint_files


@dataclass(frozen=True)
class VisualizeConfig:
    """Settings of `pumer visualize`. Settings left at null are those of the model's own training.

    Attributes:
        checkpoint: folder or hub name.
        images: picture files: one, or two for a model for pairs.
        question: the text.
        out: the PNG file to write.
        reduction: replaces the checkpoint's own: a mapping with `method`, or the name of a method.
        task: key in `pumer.tasks.TASKS`.
        resize: see `pumer.tasks.Pixels`.
        text_length: the question is cut to this many tokens.
        image_size: see `pumer.evaluation.evaluate.EvaluateConfig`.
        force: replace a drawing that is there already.
    """

    checkpoint: str
    images: tuple[Path, ...]
    question: str
    out: Path = Path("tokens.png")
    reduction: Mapping[str, Any] | str | None = None
    task: str | None = None
    resize: Resize | None = None
    text_length: int | None = None
    image_size: int | None = None
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        in_range(self)
        known_task(self.task)
        known_method(self.reduction)
        if self.out.suffix.lower() != ".png":
            raise InputError(f"{self.out} must end in .png, for a PNG file is written")

    @property
    def written(self) -> tuple[Path, ...]:
        """What is written."""
        return (self.out,)

    def check_places(self) -> None:
        """Refuse files and folders that are not there, or could not be written."""
        for image in self.images:
            there("image", image)
        check_checkpoint(self.checkpoint, self.image_size)
        new_files(self.out, force=self.force, inputs=[*self.images, *checkpoint_files(self.checkpoint)])
