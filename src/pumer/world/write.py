"""The whole built-in world: one folder per data set, each in its official format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pumer.errors import InputError
from pumer.world.scenes import DATA_SETS
from pumer.world.writer import QUESTIONS_PER_IMAGE, QuestionsConfig, write_vqav2
from pumer.world.writer_karpathy import write_coco, write_flickr30k
from pumer.world.writer_nlvr2 import write_nlvr2
from pumer.world.writer_snli_ve import write_snli_ve

_WRITERS = {"nlvr2": write_nlvr2, "snli_ve": write_snli_ve, "flickr30k": write_flickr30k, "coco": write_coco}
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
    """

    seed: int = 0
    train: int | None = None
    val: int | None = None
    test: int | None = None
    heldout: int = QuestionsConfig.heldout
    questions_per_image: int = QUESTIONS_PER_IMAGE
    tasks: tuple[str, ...] = DATA_SETS

    def __post_init__(self) -> None:
        """Refuse unknown data sets and negative sizes."""
        unknown = [name for name in self.tasks if name not in DATA_SETS]
        if unknown or not self.tasks:
            raise InputError(f"tasks must be some of {', '.join(DATA_SETS)}, not {', '.join(unknown) or 'none'}")
        for name, least in (("train", 0), ("val", 0), ("test", 0), ("heldout", 0), ("questions_per_image", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, not {value}")

    def sizes(self, task: str) -> dict[str, int]:
        """Sentences of a data set by split: "train", "val" and "test"."""
        given = {"train": self.train, "val": self.val, "test": self.test}
        return SIZES[task] | {split: count for split, count in given.items() if count is not None}


def write_world(root: str | Path, config: WorldConfig | None = None) -> list[Path]:
    """Write data sets of the world side by side: `root/vqav2`, `root/nlvr2` and so on.

    Args:
        root: the folder that holds them; a data set of the world that is there already is replaced.
        config: which, and how large.

    Returns:
        The folders written, each a `data.root`.

    Raises:
        InputError: one of them holds something that is not a world.
    """
    root, config = Path(root), config or WorldConfig()
    folders = [root / name for name in config.tasks]
    for name, folder in zip(config.tasks, folders, strict=True):
        sizes = config.sizes(name)
        if name == "vqav2":
            counts = (sizes["train"], sizes["val"], config.heldout, config.questions_per_image)
            write_vqav2(folder, config.seed, *counts, test=sizes["test"])
        else:
            _WRITERS[name](folder, config.seed, **sizes)
    return folders
