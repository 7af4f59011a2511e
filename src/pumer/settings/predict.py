"""Settings of `pumer predict`."""

from pathlib import Path
from typing import cast

from pumer.settings.common import File, Folder, NewFile, Split, SplitJob
from pumer.utils.config import config
from pumer.utils.errors import InputError


@config
class PredictConfig(SplitJob):
    """Settings of `pumer predict`. Settings left at null are those of the model's own training.

    Attributes:
        out: file to write: of a split the official result file, by default predictions.json; of a list the list with a
            column `answer`, by default predictions.csv.
        questions: instead of a split, a CSV file with the columns `question` and `image`, or `image1` and `image2`
            for a task on pairs.
        images: folder of the images that `questions` names.
        compile: answer `questions` with the model as `pumer.compile` makes it: faster for many of them.
    """

    out: NewFile | None = None
    split: Split = "test"
    questions: File | None = None
    images: Folder = Path()
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        of_a_split = {"data.root": self.data.root, "limit": self.limit, "galleries": self.galleries}
        given = [name for name, value in (of_a_split | {"scores": self.scores}).items() if value is not None]
        if given and self.questions is not None:
            raise InputError(f"{', '.join(given)}: of a split, but questions is given; leave one out")
        if self.compile and self.questions is None:
            raise InputError("compile is for questions=FILE, not for a split; leave it out")
        if self.questions is None and self.images != Path():
            raise InputError(f"--images {self.images} is for --questions; leave it out")
        if self.out is None:
            object.__setattr__(self, "out", Path("predictions.json" if self.questions is None else "predictions.csv"))
        if self.file.suffix.lower() in (".png", ".jpg", ".jpeg"):
            raise InputError(f"{self.file} is named as an image; give a name in .json, or .csv for questions")

    @property
    def file(self) -> Path:
        """The file to write."""
        return cast(Path, self.out)
