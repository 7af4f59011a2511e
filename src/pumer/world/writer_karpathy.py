"""Writes the built-in world's captions as Karpathy's JSON files: Flickr30k and COCO."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pumer.world.descriptions import CAPTIONS_PER_IMAGE, Description, ambiguous, describe_scene
from pumer.world.files import SIDECAR, dump, save_scene, sentence
from pumer.world.scenes import FAR, SPLITS, Scene, SceneConfig, generator, make_scene

_RESTVAL = "restval"
CANDIDATES = 20
RESTVAL_SHARE = 5
"""COCO: one extra image in "restval" for so many training images."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """Names of a data set's files.

    Attributes:
        data: the data set, one of DATA_SETS.
        folders: of the images, by split.
        prefix: of the images' names, before the number; "{}" stands for the folder.
        digits: of the number.
    """

    data: str
    folders: Mapping[str, str]
    prefix: str = ""
    digits: int = 9


FLICKR30K = Layout("flickr30k", dict.fromkeys(("train", "val", "test"), "flickr30k-images"))
_COCO_FOLDERS = {"train": "train2014"} | dict.fromkeys((_RESTVAL, "val", "test"), "val2014")
COCO = Layout("coco", _COCO_FOLDERS, prefix="COCO_{}_", digits=12)


def fill(
    layout: Layout,
    config: SceneConfig,
    root: Path,
    seed: int,
    sizes: Mapping[str, int],
    advance: Callable[[int], None],
) -> None:
    """Write `dataset_<data>.json` and the folders of images, each with five captions; sizes count captions.

    COCO also has the split "restval", a fifth as large as "train". The log reports how many captions of the last split
    fit another image too, among CANDIDATES of them.
    """
    for folder in layout.folders.values():
        (root / folder).mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    sidecar: dict[str, Any] = {}
    shown: list[tuple[Scene, list[Description]]] = []
    for split, folder in layout.folders.items():
        captions = sizes["train"] // RESTVAL_SHARE if split == _RESTVAL else sizes[split]
        shown = []
        for index in range(-(-captions // CAPTIONS_PER_IMAGE)):
            # "restval" has generators of the training split that none of its own scenes has.
            of, at = ("train", FAR + index) if split == _RESTVAL else (split, index)
            rng = generator(seed, of, at, layout.data)
            scene = make_scene(rng, config)
            shown.append((scene, describe_scene(scene, rng)))
            entry = _entry(layout, split, index, len(images), shown[-1][1])
            images.append(entry)
            sidecar.setdefault(split, {})[entry["filename"]] = save_scene(scene, root / folder / entry["filename"])
            advance(0 if split == _RESTVAL else CAPTIONS_PER_IMAGE)
    dump(root / f"dataset_{layout.data}.json", {"images": images, "dataset": layout.data})
    dump(root / SIDECAR, sidecar)
    _report_ambiguous(shown)


def _entry(layout: Layout, split: str, index: int, number: int, described: Sequence[Description]) -> dict[str, Any]:
    """The file's entry for the `index`-th image of a split, the `number`-th of all."""
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
    folder, image = layout.folders[split], ([*SPLITS, _RESTVAL].index(split) + 1) * 10**8 + index
    name = f"{layout.prefix.format(folder)}{image:0{layout.digits}d}.jpg"
    entry = {"sentids": list(ids), "imgid": number, "sentences": sentences, "split": split, "filename": name}
    return entry | ({"filepath": folder, "cocoid": image} if layout.data == "coco" else {})


def _report_ambiguous(shown: Sequence[tuple[Scene, Sequence[Description]]]) -> None:
    """Log how often a caption fits another image of its candidate set, as far as there are complete sets."""
    starts = range(0, len(shown) - CANDIDATES + 1, CANDIDATES)
    counts = [ambiguous(shown[first : first + CANDIDATES]) for first in starts]
    if counts:
        images = CANDIDATES * len(counts)
        logger.info(
            "among %d images, %.2f%% of the captions fit another one too, and %.2f%% of the sets of five",
            CANDIDATES,
            100 * sum(captions for captions, _ in counts) / (CAPTIONS_PER_IMAGE * images),
            100 * sum(sets for _, sets in counts) / images,
        )
