"""Settings of `pumer predict`."""

from dataclasses import dataclass, field
from pathlib import Path

from pumer.settings.common import gallery_sizes, known_task
from pumer.utils.arguments import in_range, new_files, there, writable_folders
from pumer.utils.errors import InputError
from pumer.utils.limits import check_checkpoint, checkpoint_files


@dataclass(frozen=True)
class PredictionData:
    """Where the examples of an official split are.

    Attributes:
        root: data folder; by default the one the model was trained on.
    """

    root: Path | None = None


@dataclass(frozen=True)
class PredictConfig:
    """Settings of `pumer predict`. Settings left at null are those of the model's own training.

    Attributes:
        model: folder or hub name.
        out: file to write: of a split the official result file, by default predictions.json; of a list the list with a
            column `answer`, by default predictions.csv.
        task: name in `pumer.tasks.TASKS`.
        data: where the split is.
        split: "train", "val" or "test" of the task's official files.
        limit: only so many examples, spread evenly over the split.
        questions: instead of a split, a CSV file with the columns `question` and `image`, or `image1` and `image2`
            for a task on pairs.
        images: folder of the images that `questions` names.
        batch_size: examples per forward pass.
        image_size: see `pumer.evaluation.evaluate.EvaluateConfig`.
        workers: processes that read images.
        galleries: for retrieval, see `pumer.evaluation.evaluate.EvaluateConfig`.
        scores: for retrieval, see `pumer.evaluation.evaluate.EvaluateConfig`.
        compile: answer `questions` with the model as `pumer.compile` makes it: faster for many of them.
        force: replace a result file that is there already.
    """

    model: str
    out: Path | None = None
    task: str | None = None
    data: PredictionData = field(default_factory=PredictionData)
    split: str = "test"
    limit: int | None = None
    questions: Path | None = None
    images: Path = Path(".")
    batch_size: int = 64
    image_size: int | None = None
    workers: int = 0
    galleries: str | None = None
    scores: Path | None = None
    compile: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        in_range(self)
        known_task(self.task)
        if self.galleries is not None:
            gallery_sizes(self.galleries)
        of_a_split = {"data.root": self.data.root, "limit": self.limit, "galleries": self.galleries}
        given = [name for name, value in (of_a_split | {"scores": self.scores}).items() if value is not None]
        if given and self.questions is not None:
            raise InputError(f"{', '.join(given)}: of a split, but questions is given; leave one out")
        if self.compile and self.questions is None:
            raise InputError("compile is for questions=FILE, not for a split; leave it out")

    @property
    def file(self) -> Path:
        """The file to write."""
        return self.out or Path("predictions.json" if self.questions is None else "predictions.csv")

    @property
    def written(self) -> tuple[Path, ...]:
        """What is written."""
        return (self.file,) if self.scores is None else (self.file, self.scores)

    def check_places(self) -> None:
        """Refuse files and folders that are not there, or could not be written."""
        check_checkpoint(self.model, self.image_size)
        there("data folder", self.data.root)
        there("file", self.questions)
        there("folder of images", self.images)
        if self.file.suffix.lower() in (".png", ".jpg", ".jpeg"):
            raise InputError(f"{self.file} is named as an image; give a name in .json, or .csv for questions")
        if self.questions is None and self.images != Path():
            raise InputError(f"--images {self.images} is for --questions; leave it out")
        new_files(self.file, force=self.force, inputs=[self.questions, *checkpoint_files(self.model)])
        writable_folders(self.scores)
