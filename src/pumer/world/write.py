"""The whole built-in world: one folder per data set, each in its official format."""

from __future__ import annotations

from pathlib import Path

from pumer.settings.data import WorldConfig
from pumer.utils.locks import only_one
from pumer.world.writer import write_vqav2
from pumer.world.writer_karpathy import write_coco, write_flickr30k
from pumer.world.writer_nlvr2 import write_nlvr2
from pumer.world.writer_snli_ve import write_snli_ve

_WRITERS = {"nlvr2": write_nlvr2, "snli_ve": write_snli_ve, "flickr30k": write_flickr30k, "coco": write_coco}


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


def run(config: WorldConfig) -> list[Path]:
    """`pumer data world`: `write_world`, by one process at a time; data sets that are there stay, without `force`.

    Returns:
        The folders written.

    Raises:
        InputError: one of them holds something.
    """
    config.check_places()
    with only_one(*config.written):
        return write_world(config.out, config)
