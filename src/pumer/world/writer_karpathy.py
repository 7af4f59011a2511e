"""Writes the built-in world's captions as Karpathy's JSON files, for the reader that reads the real ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from pumer.world.descriptions import CAPTIONS_PER_IMAGE, Description, describe_scene, mistaken
from pumer.world.files import SIDECAR, describe_objects, dump, save_picture, sentence, whole
from pumer.world.scenes import SPLITS, Scene, generator, make_scene

_RESTVAL = "restval"
GALLERY = 20
RESTVAL_SHARE = 5
"""COCO: one picture more in "restval" for so many training pictures."""
_RESTVAL_FROM = 1 << 40  # "restval" has the training split's random numbers, far from those of its own pictures
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Layout:
    """Where a data set keeps its files.

    Attributes:
        name: of the data set, in `dataset_<name>.json`.
        folders: of the pictures, by split.
        prefix: of their names, before the number; "{}" stands for the folder.
        digits: of the number.
        filepath: whether the entries name their folder and COCO's number.
    """

    name: str
    folders: Mapping[str, str]
    prefix: str = ""
    digits: int = 9
    filepath: bool = False


_FLICKR30K = _Layout("flickr30k", dict.fromkeys(("train", "val", "test"), "flickr30k-images"))
_COCO = _Layout(
    "coco",
    {"train": "train2014"} | dict.fromkeys((_RESTVAL, "val", "test"), "val2014"),
    prefix="COCO_{}_",
    digits=12,
    filepath=True,
)


def write_flickr30k(root: str | Path, seed: int, train: int, val: int, test: int) -> Path:
    """Write `dataset_flickr30k.json` and `flickr30k-images/`.

    Tells in the log how many captions of the last split fit another picture too, among GALLERY of them. `scenes.json`
    holds what the format does not know: the objects of every picture.

    Args:
        root: the folder to write; an existing world there is replaced.
        seed: seed of scenes and captions; pictures of different splits never share a scene.
        train: number of training captions; pictures have five each.
        val: the same of the split "val".
        test: the same of the split "test".

    Returns:
        `root`.

    Raises:
        InputError: `root` holds something that is not a world.
    """
    return _write(_FLICKR30K, Path(root), seed, {"train": train, "val": val, "test": test})


def write_coco(root: str | Path, seed: int, train: int, val: int, test: int) -> Path:
    """Write `dataset_coco.json`, `train2014/` and `val2014/`, where all splits but "train" have their pictures.

    There is a fifth as much in the split "restval" as in "train", on top. Everything else is as in `write_flickr30k`,
    of other scenes.

    Args:
        root: see `write_flickr30k`.
        seed: see there.
        train: see there.
        val: see there.
        test: see there.

    Returns:
        `root`.

    Raises:
        InputError: `root` holds something that is not a world.
    """
    counts = {"train": train, _RESTVAL: train // RESTVAL_SHARE, "val": val, "test": test}
    return _write(_COCO, Path(root), seed, counts)


def _write(layout: _Layout, root: Path, seed: int, counts: Mapping[str, int]) -> Path:
    """Write a data set with so many captions per split."""
    pictures = {split: -(-count // CAPTIONS_PER_IMAGE) for split, count in counts.items()}
    with whole(root) as aside, Progress(transient=True) as progress:
        told = progress.add_task(f"writing {root}", total=sum(pictures.values()))
        for folder in layout.folders.values():
            (aside / folder).mkdir(exist_ok=True)
        images: list[dict[str, Any]] = []
        sidecar: dict[str, Any] = {}
        for split, count in pictures.items():
            shown: list[tuple[Scene, list[Description]]] = []
            for index in range(count):
                rng = _generator(seed, split, index, layout.name)
                scene = make_scene(rng)
                shown.append((scene, describe_scene(scene, rng)))
                images.append(_entry(layout, split, index, len(images), shown[-1][1]))
                name = images[-1]["filename"]
                save_picture(scene, aside / layout.folders[split] / name)
                sidecar.setdefault(split, {})[name] = {"objects": describe_objects(scene)}
                progress.advance(told)
        dump(aside / f"dataset_{layout.name}.json", {"images": images, "dataset": layout.name})
        dump(aside / SIDECAR, sidecar)
    _tell(shown)
    return root


def _generator(seed: int, split: str, index: int, data: str) -> Any:
    if split == _RESTVAL:
        return generator(seed, "train", _RESTVAL_FROM + index, data)
    return generator(seed, split, index, data)


def _entry(layout: _Layout, split: str, index: int, number: int, described: Sequence[Description]) -> dict[str, Any]:
    """What the file says of the `index`-th picture of a split, the `number`-th of all."""
    ids = range(CAPTIONS_PER_IMAGE * number, CAPTIONS_PER_IMAGE * (number + 1))
    sentences = [
        {
            "tokens": description.text.replace(",", "").rstrip(".").split(),
            "raw": sentence(description.text),
            "imgid": number,
            "sentid": sentid,
        }
        for sentid, description in zip(ids, described, strict=True)
    ]
    folder, picture = layout.folders[split], [*SPLITS, _RESTVAL].index(split) * 10**8 + 10**8 + index
    name = f"{layout.prefix.format(folder)}{picture:0{layout.digits}d}.jpg"
    entry = {"sentids": list(ids), "imgid": number, "sentences": sentences, "split": split, "filename": name}
    return entry | {"filepath": folder, "cocoid": picture} if layout.filepath else entry


def _tell(shown: Sequence[tuple[Scene, Sequence[Description]]]) -> None:
    """Log how often a caption fits another picture of its gallery, as far as there are whole galleries."""
    galleries = [shown[first : first + GALLERY] for first in range(0, len(shown) - GALLERY + 1, GALLERY)]
    wrong = [mistaken(gallery) for gallery in galleries]
    if galleries:
        pictures = GALLERY * len(galleries)
        logger.info(
            "among %d pictures, %.2f%% of the captions fit another one too, and %.2f%% of the sets of five",
            GALLERY,
            100 * sum(captions for captions, _ in wrong) / (CAPTIONS_PER_IMAGE * pictures),
            100 * sum(sets for _, sets in wrong) / pictures,
        )
