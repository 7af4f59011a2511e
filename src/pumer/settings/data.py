"""Settings of `pumer data check`, `prepare` and `world`."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pumer.settings import common
from pumer.utils.config import config
from pumer.utils.errors import InputError
from pumer.utils.files import read_json
from pumer.utils.limits import check_checkpoint
from pumer.utils.places import PREPARED, check_new_folder

Sentences = Annotated[int, Field(ge=0, le=10**7)]
QuestionsPerImage = Annotated[int, Field(ge=1, le=1000)]


@config
class DataJob(common.Job):
    """A command on a data folder.

    Attributes:
        task: vqav2, nlvr2, snli_ve, flickr30k or coco.
        root: data folder with the task's official files.
        splits: which ones; null for all splits whose annotation files are there.
        workers: processes that read images; 0 reads in this one.
    """

    task: common.Task
    root: common.Folder
    splits: tuple[common.Split, ...] | None = None
    workers: common.Processes = 0

    def __post_init__(self) -> None:
        for split in self.splits or ():
            common.known_split(split, self.task)


@config
class CheckConfig(DataJob):
    """Settings of `pumer data check`.

    Attributes:
        root: data folder: a download or a prepared folder.
        model: whose tokenizer reads the texts, to count those that it will cut and the words that it splits; null for
            none.
        text_length: texts are cut to this many tokens; null for what the model was trained with, or can take.
        limit: decode only so many images of each split, spread evenly; null decodes all.
        output: CSV file for the list of unusable images.
        speed: measure how many images one core reads per second.
        edge: side in pixels that `speed` resizes images to.
        speed_images: images that `speed` reads, spread evenly.
        force: replace an `output` that is there already.
    """

    model: common.Model | None = None
    text_length: common.TextLength | None = None
    limit: common.Count | None = None
    output: common.NewFile | None = None
    speed: bool = False
    edge: common.ImageSize = 384
    speed_images: common.Count = 500
    force: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_length is not None and self.model is None:
            raise InputError(f"text_length={self.text_length} counts a model's tokens; give model=... as well")

    def check_places(self) -> None:
        """Refuse files and folders that are missing or not writable."""
        super().check_places()
        if self.model is not None:
            check_checkpoint(self.model)


@config
class PrepareConfig(DataJob):
    """Settings of `pumer data prepare`.

    Attributes:
        out: folder to write; it takes the place of `root` in every other command.
        resize: scale images whose shorter edge has more pixels down to this (bicubic, aspect ratio kept, JPEG of
            quality 95, upright); null keeps every file as it is.
        retry: look again at images that an earlier run had to skip.
        strict: stop at the first file's worth of images in which one is missing or broken.
    """

    out: common.NewFolder
    resize: common.ImageSize | None = None
    retry: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out.resolve() == self.root.resolve():
            raise InputError(f"the prepared folder needs a place of its own, not {self.out} itself")

    def check_places(self) -> None:
        """Refuse files and folders that are missing or not writable."""
        super().check_places()
        if self.root.resolve() in self.out.resolve().parents and not (self.out / PREPARED).exists():
            raise InputError(f"{self.out} lies in the input folder {self.root}; give a folder outside of it")


@config
class QuestionsConfig:
    """The questions that `pumer.world` writes by default.

    Attributes:
        seed: seed of every scene and question.
        train: training questions.
        val: questions of the test split.
        heldout: questions about colour x shape combinations that the other splits never show.
        questions_per_image: questions about each image.
    """

    seed: common.Seed = 0
    train: Sentences = 6000
    val: Sentences = 5400
    heldout: Sentences = 1800
    questions_per_image: QuestionsPerImage = 6


SIZES = {
    "vqav2": {"train": QuestionsConfig.train, "val": QuestionsConfig.val, "test": 1800},
    "nlvr2": {"train": 8000, "val": 1800, "test": 5400},
    "snli_ve": {"train": 8100, "val": 1800, "test": 5400},
    "flickr30k": {"train": 5000, "val": 500, "test": 2500},
    "coco": {"train": 5000, "val": 500, "test": 2500},
}
"""Sentences per split by default; VQAv2 is evaluated on "val", the others on "test"."""
WIDE_QUESTIONS = 18_000
"""Training questions of the wide layout by default."""


WORLD = "world.json"
"""File of a data set of the world: what it depends on; written last."""


@config
class WorldConfig(common.Job):
    """What `pumer data world` writes; sizes are numbers of sentences (questions, statements, captions) per data set.

    Attributes:
        seed: seed of every scene and sentence.
        train: training sentences; null for the data set's own number: 6,000 questions (`wide`: 18,000), 8,000
            statements, 8,100 sentences, 5,000 captions. All five with their images are 300 MB and take minutes.
        val: sentences of the validation split, likewise.
        test: sentences of the test split, likewise; VQAv2's has no public answers.
        heldout: questions about colour x shape combinations that the other splits never show; VQAv2 only.
        questions_per_image: questions about each image; VQAv2 only.
        wide: harder: 12 to 18 objects instead of 12 to 15, 10 shapes instead of 6, 12 colours instead of 8, 5 textures
            instead of 3, counts to nine instead of four, and questions of up to 30 words.
        tasks: the data sets to write.
        out: folder to write them into.
        force: replace data sets of the world that are there already.
    """

    seed: common.Seed = 0
    train: Sentences | None = None
    val: Sentences | None = None
    test: Sentences | None = None
    heldout: Sentences = QuestionsConfig.heldout
    questions_per_image: QuestionsPerImage = QuestionsConfig.questions_per_image
    wide: bool = False
    tasks: Annotated[tuple[common.Task, ...], Field(min_length=1)] = common.TASKS
    out: Path = Path("data/world")
    force: bool = False

    @property
    def written(self) -> tuple[Path, ...]:
        """The folder of each data set."""
        return tuple(self.out / name for name in self.tasks)

    def check_places(self) -> None:
        """Refuse folders that could not be written, or hold something."""
        for folder in self.written:
            check_new_folder(folder)
            if folder.is_dir() and any(folder.iterdir()) and not self.force and not self.is_there(folder):
                held = "other files"
                if (folder / WORLD).is_file():
                    kept, wanted = read_json(folder / WORLD), self.about(folder.name)
                    names = [name for name in wanted | kept if kept.get(name) != wanted.get(name)]
                    held = f"a world with other settings ({', '.join(names)})"
                raise InputError(f"{folder} holds {held}; give another folder, or --force to replace a world")

    def about(self, task: str) -> dict[str, Any]:
        """What a data set depends on, as its folder records it."""
        own = ("heldout", "questions_per_image") if task == "vqav2" else ()
        about = {"seed": self.seed, "sizes": self.sizes(task)} | {name: getattr(self, name) for name in own}
        return about | {"wide": True} if self.wide else about

    def is_there(self, folder: Path) -> bool:
        """Whether a folder holds a data set with these settings, whole."""
        file = folder / WORLD
        return file.is_file() and read_json(file) == self.about(folder.name)

    def sizes(self, task: str) -> dict[str, int]:
        """Sentences of a data set by split: "train", "val" and "test"."""
        given = {"train": self.train, "val": self.val, "test": self.test}
        known = SIZES[task] | ({"train": WIDE_QUESTIONS} if self.wide and task == "vqav2" else {})
        return known | {split: count for split, count in given.items() if count is not None}
