"""Writes the built-in world's entailment sentences as SNLI-VE files, for the reader that reads the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from pumer.world.descriptions import describe_scene
from pumer.world.entailment import LABELS, PICTURES, triples
from pumer.world.files import SIDECAR, describe_objects, dump, dump_lines, save_picture, sentence, whole
from pumer.world.scenes import SPLITS, Scene, generator, make_scene

_NAMES = {"train": "train", "val": "dev", "test": "test"}
_ANNOTATORS = {"train": 1, "val": 5, "test": 5}
_BLOCKS = 1 << 40  # what is drawn for a block of scenes has its own random numbers, far from those of the scenes


def write_snli_ve(root: str | Path, seed: int, train: int, val: int, test: int) -> Path:
    """Write `snli_ve_{train,dev,test}.jsonl` and `flickr30k-images/`.

    Every sentence is in the files three times, with pictures of all three labels. About one line in a hundred comes
    on top and has the gold label "-": the annotators did not agree. `scenes.json` holds what the format does not know.

    Args:
        root: the folder to write; an existing world there is replaced.
        seed: seed of scenes and sentences; pictures of different splits never share a scene.
        train: number of training sentences that have a label.
        val: the same of the split "dev".
        test: the same of the split "test".

    Returns:
        `root`.

    Raises:
        InputError: `root` holds something that is not a world.
    """
    root, counts = Path(root), {"train": train, "val": val, "test": test}
    with whole(root) as aside, Progress(transient=True) as progress:
        told = progress.add_task(f"writing {root}", total=sum(counts.values()))
        (aside / "flickr30k-images").mkdir()
        sidecar: dict[str, Any] = {}
        for split, name in _NAMES.items():
            lines: list[dict[str, Any]] = []
            sidecar[name] = pictures = {}
            written, block = 0, 0
            while written < counts[split]:
                made, shown = _block(seed, split, block, counts[split] - written)
                for number, scene in shown.items():
                    save_picture(scene, aside / "flickr30k-images" / f"{number}.jpg")
                    pictures[number] = {"objects": describe_objects(scene)}
                lines += made
                labelled = sum(line["gold_label"] != "-" for line in made)
                written, block = written + labelled, block + 1
                progress.advance(told, labelled)
            dump_lines(aside / f"snli_ve_{name}.jsonl", lines)
        dump(aside / SIDECAR, sidecar)
    return root


def _block(seed: int, split: str, block: int, most: int) -> tuple[list[dict[str, Any]], dict[str, Scene]]:
    """The lines about the pictures of a block, in random order, and those pictures by their id."""
    first, rng = block * PICTURES, generator(seed, split, _BLOCKS + block, "snli_ve")
    scenes = [make_scene(generator(seed, split, first + index, "snli_ve")) for index in range(PICTURES)]
    captions = [sentence(describe_scene(scene, rng, 1)[0].text) for scene in scenes]
    ids = [f"{SPLITS.index(split) + 1}{first + index:08d}" for index in range(PICTURES)]
    chosen = [
        (found.text, label, index)
        for found, places in triples(scenes, rng)
        for label, index in zip(LABELS, places, strict=True)
    ][:most]
    lines = []
    for number in rng.permutation(len(chosen)).tolist():
        text, label, index = chosen[number]
        for gold in (label, "-") if rng.integers(100) == 0 else (label,):
            lines.append(
                {
                    "annotator_labels": _annotators(gold, _ANNOTATORS[split], rng),
                    "captionID": f"{ids[index]}.jpg#0",
                    "gold_label": gold,
                    "pairID": f"{ids[index]}.jpg#0r{number}{gold[0]}",
                    "sentence1": captions[index],
                    "sentence1_binary_parse": "",
                    "sentence1_parse": "",
                    "sentence2": sentence(text),
                    "sentence2_binary_parse": "",
                    "sentence2_parse": "",
                    "Flickr30K_ID": ids[index],
                }
            )
    return lines, {ids[index]: scenes[index] for _, _, index in chosen}


def _annotators(gold: str, count: int, rng: np.random.Generator) -> list[str]:
    """What the annotators said: most of them the gold label; without one, two say each of two labels."""
    if gold == "-":
        return list(LABELS[:2] * 2 + LABELS[2:])[: max(count, 2)]
    wrong = [label for label in LABELS if label != gold]
    others = [wrong[int(rng.integers(len(wrong)))] for _ in range(int(rng.integers((count + 1) // 2)))]
    return [gold] * (count - len(others)) + others
