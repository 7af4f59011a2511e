"""Settings of `pumer data check`, `prepare` and `world`."""

from dataclasses import dataclass
from pathlib import Path

from pumer.settings.common import TASKS as DATA_SETS
from pumer.settings.common import known_task
from pumer.utils.arguments import in_range, new_files, there, writable_folders
from pumer.utils.errors import InputError

QUESTIONS_PER_IMAGE = 6


@dataclass(frozen=True)
class CheckConfig:
    """Settings of `pumer data check`.

    Attributes:
        task: name in `pumer.tasks.TASKS`.
        root: data folder: a download or a prepared folder.
        splits: what to check; null for all splits whose annotation files are there.
        limit: decode only so many images of each split, spread evenly; null decodes all.
        workers: processes that read images; 0 reads in this one.
        output: CSV file for the list of unusable images.
        speed: measure how many images one core reads per second.
        edge: side in pixels that `speed` resizes images to.
        speed_images: images that `speed` reads, spread evenly.
        force: replace an `output` that is there already.
    """

    task: str
    root: Path
    splits: tuple[str, ...] | None = None
    limit: int | None = None
    workers: int = 0
    output: Path | None = None
    speed: bool = False
    edge: int = 384
    speed_images: int = 500
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        in_range(self)
        known_task(self.task)

    @property
    def written(self) -> tuple[Path, ...]:
        """What is written."""
        return () if self.output is None else (self.output,)

    def check_places(self) -> None:
        """Refuse files and folders that are not there, or could not be written."""
        there("data folder", self.root)
        new_files(self.output, force=self.force)


@dataclass(frozen=True)
class PrepareConfig:
    """Settings of `pumer data prepare`.

    Attributes:
        task: name in `pumer.tasks.TASKS`.
        root: data folder with the task's official files.
        out: folder to write; it takes the place of `root` in every other command.
        splits: what to prepare; null for all splits whose annotation files are there.
        resize: scale images whose shorter edge has more pixels down to this (bicubic, aspect ratio kept, JPEG of
            quality 95, upright); null keeps every file as it is.
        workers: processes that read images; 0 reads in this one.
        retry: look again at images that an earlier run had to skip.
        strict: stop at the first file's worth of images in which one is missing or broken.
    """

    task: str
    root: Path
    out: Path
    splits: tuple[str, ...] | None = None
    resize: int | None = None
    workers: int = 0
    retry: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        in_range(self)
        known_task(self.task)
        if self.out.resolve() == self.root.resolve():
            raise InputError(f"the prepared folder needs a place of its own, not {self.out} itself")

    @property
    def written(self) -> tuple[Path, ...]:
        """What is written."""
        return (self.out,)

    def check_places(self) -> None:
        """Refuse files and folders that are not there, or could not be written."""
        there("data folder", self.root)
        writable_folders(self.out)


@dataclass(frozen=True)
class QuestionsConfig:
    """What `write_vqav2` writes by default.

    Args:
        seed: seed of every scene and question.
        train: training questions.
        val: questions of the test split.
        heldout: questions about colour x shape combinations that the other splits never show.
        questions_per_image: questions about each picture.
    """

    seed: int = 0
    train: int = 6000
    val: int = 5400
    heldout: int = 1800
    questions_per_image: int = QUESTIONS_PER_IMAGE

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        in_range(self, "world.")


SIZES = {
    "vqav2": {"train": QuestionsConfig.train, "val": QuestionsConfig.val, "test": 1800},
    "nlvr2": {"train": 8000, "val": 1800, "test": 5400},
    "snli_ve": {"train": 8100, "val": 1800, "test": 5400},
    "flickr30k": {"train": 5000, "val": 500, "test": 2500},
    "coco": {"train": 5000, "val": 500, "test": 2500},
}
"""Sentences per split where nothing else is asked for; VQAv2's figures are quoted on "val", the others' on "test"."""


@dataclass(frozen=True)
class WorldConfig:
    """What `pumer data world` writes; sizes are numbers of sentences (questions, statements, captions) per data set.

    Args:
        seed: seed of every scene and sentence.
        train: training sentences; null for the data set's own number, see SIZES.
        val: sentences of the validation split, likewise.
        test: sentences of the test split, likewise; VQAv2's has no public answers.
        heldout: questions about colour x shape combinations that the other splits never show; VQAv2 only.
        questions_per_image: questions about each picture; VQAv2 only.
        tasks: the data sets to write.
        out: folder to write them into.
        force: replace data sets of the world that are there already.
    """

    seed: int = 0
    train: int | None = None
    val: int | None = None
    test: int | None = None
    heldout: int = QuestionsConfig.heldout
    questions_per_image: int = QUESTIONS_PER_IMAGE
    tasks: tuple[str, ...] = DATA_SETS
    out: Path = Path("data/world")
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse unknown data sets and negative sizes."""
        unknown = [name for name in self.tasks if name not in DATA_SETS]
        if unknown or not self.tasks:
            raise InputError(f"tasks must be some of {', '.join(DATA_SETS)}, not {', '.join(unknown) or 'none'}")
        in_range(self)

    @property
    def folders(self) -> list[Path]:
        """The folder of each data set."""
        return [self.out / name for name in self.tasks]

    @property
    def written(self) -> tuple[Path, ...]:
        """What is written."""
        return tuple(self.folders)

    def check_places(self) -> None:
        """Refuse folders that could not be written, or hold something."""
        for folder in self.folders:
            writable_folders(folder)
            if folder.is_dir() and any(folder.iterdir()) and not self.force:
                raise InputError(f"{folder} holds files already; give another folder, or --force to replace a world")

    def sizes(self, task: str) -> dict[str, int]:
        """Sentences of a data set by split: "train", "val" and "test"."""
        given = {"train": self.train, "val": self.val, "test": self.test}
        return SIZES[task] | {split: count for split, count in given.items() if count is not None}
