"""Settings of `pumer predict`."""

import os
from glob import glob, has_magic
from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import Field

from pumer.settings.common import File, Folder, NewFile, Reduction, Split, SplitJob
from pumer.utils.config import config
from pumer.utils.errors import InputError, some
from pumer.utils.limits import check_checkpoint
from pumer.utils.places import check_input, check_new_folder

SHARDS = (".parquet", ".tar")
"""How the names of shards end: files of rows that a Ray cluster answers."""


@config
class PredictConfig(SplitJob):
    """Settings of `pumer predict`. Settings left at null are those of the model's own training.

    Attributes:
        out: file to write: of a split the official result file, by default predictions.json; of a list the list with a
            column `answer`, by default predictions.csv. Of shards and a folder of images the folder to write, by
            default answers.
        questions: instead of a split, a CSV file with the columns `question` and `image`, or `image1` and `image2`
            for a task on pairs. Or shards, answered on a Ray cluster: a folder, a file, or several as in
            'shards/*.parquet' or 'shards/*.tar' (WebDataset).
        question: asked about every image, of the folder `images` or of shards that hold no questions.
        images: folder of the images that `questions` names, by default the current one, or that `question` is about.
        reduction: replaces the saved one: a mapping with `method`, or "none"; null for the model as it was saved.
        compile: answer `questions` with the model as `pumer.compile` makes it: faster for many of them.
        replicas: on a Ray cluster, copies of the model, each in a process of its own; null for one per GPU, without
            GPUs for one per machine.
        address: of a running Ray cluster; null for the one that RAY_ADDRESS names, else one that is started here.
        on_error: on a Ray cluster, at a row that cannot be answered: "stop", or "record" the reason in the column
            `error` and go on.
    """

    out: NewFile | None = None
    split: Split = "test"
    questions: File | None = None
    question: str | None = None
    images: Folder = Path()
    reduction: Reduction | None = None
    compile: bool = False
    replicas: Annotated[int, Field(ge=1, le=1024)] | None = None
    address: str | None = None
    on_error: Literal["stop", "record"] = "stop"

    def __post_init__(self) -> None:
        super().__post_init__()
        listed = self.questions is not None or self.question is not None
        of_a_split = {"data.root": self.data.root, "limit": self.limit, "galleries": self.galleries}
        given = [name for name, value in (of_a_split | {"scores": self.scores}).items() if value is not None]
        if given and listed:
            raise InputError(f"{', '.join(given)}: of a split, but questions is given; leave one out")
        if self.compile and not listed:
            raise InputError("compile is for questions=FILE, not for a split; leave it out")
        if not listed and self.images != Path():
            raise InputError(f"--images {self.images} holds no question; give --question TEXT, or --questions FILE")
        on_ray = {"replicas": self.replicas, "address": self.address}
        on_ray |= {"on_error": None if self.on_error == "stop" else self.on_error}
        given = [f"{name}={value}" for name, value in on_ray.items() if value is not None]
        if given and not self.sharded:
            raise InputError(f"{', '.join(given)} is for shards and folders of images; leave it out")
        if self.sharded and self.workers:
            raise InputError(f"workers={self.workers} is not for a Ray cluster; give replicas, or leave it out")
        if self.question is not None and not self.question.strip():
            raise InputError("question is empty; give the question to ask about every image")
        if self.question is not None and self.questions is None and self.images == Path():
            raise InputError(
                "question is asked about every image of a folder: give --images FOLDER, or --questions FILE"
            )
        if self.question is not None and not self.sharded:
            raise InputError("question is for a folder of images and for shards; write it into the CSV file")
        if self.out is None:
            name = "answers" if self.sharded else "predictions.csv" if listed else "predictions.json"
            object.__setattr__(self, "out", Path(name))
        ending, other = (".csv", ".json") if listed else (".json", ".csv")
        if not self.sharded and self.file.suffix.lower() in (other, ".png", ".jpg", ".jpeg"):
            raise InputError(f"{self.file} is named as another kind of file than is written; give a name in {ending}")

    @property
    def file(self) -> Path:
        """The file to write; of shards the folder."""
        return cast(Path, self.out)

    @property
    def sharded(self) -> bool:
        """Whether a Ray cluster answers: shards, or a folder of images."""
        path = self.questions
        if path is None:
            return self.question is not None
        return path.is_dir() or path.suffix in SHARDS or (has_magic(str(path)) and not path.exists())

    def shards(self) -> dict[Path, Path]:
        """The shards that `questions` names, in order, each with the file its answers go to.

        Raises:
            InputError: where it names none, files of several kinds or none of `SHARDS`, and files that would be
                overwritten.
        """
        if self.questions is None:
            return {}
        if self.questions.is_dir():
            found = [path for path in self.questions.rglob("*") if path.suffix in SHARDS and path.is_file()]
        else:
            found = [Path(name) for name in glob(str(self.questions), recursive=True)]
            found += [self.questions] if not found and self.questions.exists() else []
        paths = sorted(Path(os.path.abspath(path)) for path in found)
        if not paths:
            remedy = "give Parquet or tar files, or of a folder of images --images FOLDER --question TEXT"
            raise InputError(f"questions {self.questions}: there are no such files; {remedy}")
        kinds = sorted({path.suffix for path in paths})
        if len(kinds) > 1 or kinds[0] not in SHARDS:
            others = some([kind or "no ending" for kind in kinds])
            raise InputError(f"questions {self.questions}: files in {others}; give {' or '.join(SHARDS)} files alone")
        base, out = os.path.commonpath([path.parent for path in paths]), self.file.resolve()
        if out.is_relative_to(self.questions.resolve()) or out in {path.resolve().parent for path in paths}:
            raise InputError(f"out {self.file} lies among the shards that are read; give another folder")
        return {path: self.file / path.relative_to(base).with_suffix(".parquet") for path in paths}

    def check_places(self) -> None:
        """Refuse files and folders that are missing or not writable."""
        if not self.sharded:
            super().check_places()
            return
        check_checkpoint(self.model, self.image_size)
        check_input("images", self.images, folder=True)
        self.shards()
        check_new_folder(self.file)
