"""Writes the built-in world: one folder per data set, each in its official format and read by the official readers.

Every folder has a `scenes.json` with what the formats have no room for: the objects of every image and their boxes.
Images of different splits and data sets never share a scene.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pumer.settings.data import WORLD, QuestionsConfig, WorldConfig
from pumer.utils.files import remove_leftovers, write_json
from pumer.utils.locks import only_one
from pumer.utils.progress import progress_bar
from pumer.world import writer_karpathy, writer_nlvr2, writer_snli_ve, writer_vqav2
from pumer.world.files import whole
from pumer.world.scenes import NARROW, WIDE, SceneConfig

logger = logging.getLogger(__name__)

_Fill = Callable[[Path, int, Mapping[str, int], Callable[[int], None]], None]
_FILL: Mapping[str, Callable[..., None]] = {
    "nlvr2": writer_nlvr2.fill,
    "snli_ve": writer_snli_ve.fill,
    "flickr30k": partial(writer_karpathy.fill, writer_karpathy.FLICKR30K),
    "coco": partial(writer_karpathy.fill, writer_karpathy.COCO),
}


def write_vqav2(
    root: str | Path,
    seed: int = 0,
    train: int = QuestionsConfig.train,
    val: int = QuestionsConfig.val,
    heldout: int = QuestionsConfig.heldout,
    questions_per_image: int = QuestionsConfig.questions_per_image,
    scenes: SceneConfig = NARROW,
    test: int = 0,
) -> Path:
    """Write the world's questions in VQAv2's files.

    Args:
        root: the folder to write; an existing world there is replaced.
        seed: seed of scenes and questions.
        train: number of training questions, train2014.
        val: number of test questions, val2014.
        heldout: number of questions about held-out combinations in `root/heldout`, a data set with a val split only.
        questions_per_image: questions about each image.
        scenes: layout of the images.
        test: number of questions without public answers, test2015.

    Returns:
        `root`, which is either whole or absent at any moment.

    Raises:
        InputError: `root` holds something that is not a world.
    """
    fill = partial(writer_vqav2.fill, questions_per_image, scenes)
    return _write(Path(root), fill, seed, {"train": train, "val": val, "test": test, "heldout": heldout})


def write_world(root: str | Path, config: WorldConfig | None = None) -> list[Path]:
    """Write data sets of the world side by side: `root/vqav2`, `root/nlvr2` and so on; those that are there stay.

    Args:
        root: the folder that holds them; a data set of the world with other settings, or with `force`, is replaced.
        config: which, and how large.

    Returns:
        The folders written, each a `data.root`.

    Raises:
        InputError: one of them holds something that is not a world.
    """
    config, folders = config or WorldConfig(), []
    layout = WIDE if config.wide else NARROW
    for name in config.tasks:
        sizes, folder = config.sizes(name), Path(root) / name
        folders.append(folder)
        if not config.force and config.is_there(folder):
            logger.info("%s is there", folder)
            continue
        if name == "vqav2":
            fill = partial(writer_vqav2.fill, config.questions_per_image, layout)
            sizes = sizes | {"heldout": config.heldout}
        else:
            fill = partial(_FILL[name], layout)
        _write(folder, fill, config.seed, sizes, config.about(name))
    return folders


def _write(
    root: Path, fill: _Fill, seed: int, sizes: Mapping[str, int], about: Mapping[str, Any] | None = None
) -> Path:
    with whole(root) as aside, progress_bar() as progress:
        bar = progress.add_task(f"writing {root}", total=sum(sizes.values()), note="")
        fill(aside, seed, sizes, partial(progress.advance, bar))
        if about is not None:
            write_json(aside / WORLD, about)
    return root


def run(config: WorldConfig) -> list[Path]:
    """`pumer data world`: `write_world`, by one process at a time; data sets that are there stay, without `force`.

    Returns:
        The folders written.

    Raises:
        InputError: one of them holds something.
    """
    config.check_places()
    with only_one(*config.written):
        for folder in config.written:  # of a run that was killed
            remove_leftovers(folder)
        return write_world(config.out, config)
