"""Writes the built-in world's captions as Karpathy's JSON of Flickr30k, for the reader that reads the real one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from pumer.world.descriptions import CAPTIONS_PER_IMAGE, Description, describe_scene, mistaken
from pumer.world.files import SIDECAR, describe_objects, dump, save_picture, sentence, whole
from pumer.world.scenes import SPLITS, Scene, generator, make_scene

GALLERY = 20
logger = logging.getLogger(__name__)


def write_flickr30k(root: str | Path, seed: int = 0, train: int = 6000, val: int = 5400, test: int = 1800) -> Path:
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
    root, counts = Path(root), {"train": train, "val": val, "test": test}
    pictures = {split: -(-count // CAPTIONS_PER_IMAGE) for split, count in counts.items()}
    with whole(root) as aside, Progress(transient=True) as progress:
        told = progress.add_task(f"writing {root}", total=sum(pictures.values()))
        (aside / "flickr30k-images").mkdir()
        images: list[dict[str, Any]] = []
        sidecar: dict[str, Any] = {}
        for split, count in pictures.items():
            shown: list[tuple[Scene, list[Description]]] = []
            for index in range(count):
                rng = generator(seed, split, index, "flickr30k")
                scene = make_scene(rng)
                shown.append((scene, describe_scene(scene, rng)))
                name = f"{SPLITS.index(split) + 1}{index:08d}.jpg"
                save_picture(scene, aside / "flickr30k-images" / name)
                images.append(_entry(name, split, len(images), shown[-1][1]))
                sidecar.setdefault(split, {})[name] = {"objects": describe_objects(scene)}
                progress.advance(told)
        dump(aside / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
        dump(aside / SIDECAR, sidecar)
    _tell(shown)
    return root


def _entry(name: str, split: str, number: int, described: Sequence[Description]) -> dict[str, Any]:
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
    return {"sentids": list(ids), "imgid": number, "sentences": sentences, "split": split, "filename": name}


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
