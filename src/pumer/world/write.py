"""The whole built-in world: one folder per data set, each in its official format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pumer.errors import InputError
from pumer.world.scenes import DATA_SETS
from pumer.world.writer import QuestionsConfig, write_vqav2
from pumer.world.writer_flickr30k import write_flickr30k
from pumer.world.writer_nlvr2 import write_nlvr2
from pumer.world.writer_snli_ve import write_snli_ve

_WRITERS = {"nlvr2": write_nlvr2, "snli_ve": write_snli_ve, "flickr30k": write_flickr30k}


@dataclass(frozen=True)
class WorldConfig(QuestionsConfig):
    """What `pumer data world` writes; sizes are numbers of sentences (questions, statements, captions) per data set.

    Args:
        seed: seed of every scene and sentence.
        train: training sentences.
        val: sentences of the split that accuracy is quoted on.
        heldout: questions about colour x shape combinations that the other splits never show; VQAv2 only.
        questions_per_image: questions about each picture; VQAv2 only.
        test: sentences of the test split; VQAv2's has no public answers.
        tasks: the data sets to write.
    """

    test: int = 1800
    tasks: tuple[str, ...] = DATA_SETS

    def __post_init__(self) -> None:
        """Refuse unknown data sets and negative sizes."""
        unknown = [name for name in self.tasks if name not in DATA_SETS]
        if unknown or not self.tasks:
            raise InputError(f"tasks must be some of {', '.join(DATA_SETS)}, not {', '.join(unknown) or 'none'}")
        for name in ("train", "val", "test", "heldout"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be at least 0, not {getattr(self, name)}")


def write_world(root: str | Path, config: WorldConfig | None = None) -> list[Path]:
    """Write data sets of the world side by side: `root/vqav2`, `root/nlvr2`, `root/snli_ve`, `root/flickr30k`.

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
    sizes = (config.seed, config.train, config.val)
    for name, folder in zip(config.tasks, folders, strict=True):
        if name == "vqav2":
            write_vqav2(folder, *sizes, config.heldout, config.questions_per_image, test=config.test)
        else:
            _WRITERS[name](folder, *sizes, config.test)
    return folders
