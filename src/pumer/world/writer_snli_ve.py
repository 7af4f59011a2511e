"""Writes the built-in world's entailment sentences as SNLI-VE files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pumer.world.descriptions import describe_scene
from pumer.world.entailment import BLOCK, LABELS, triples
from pumer.world.files import SIDECAR, dump, dump_lines, save_scene, sentence
from pumer.world.scenes import SPLITS, Scene, SceneConfig, blocks

_SPLITS = {"train": ("train", 1), "val": ("dev", 5), "test": ("test", 5)}
"""Name of each split in the files, and the number of annotators."""


def fill(config: SceneConfig, root: Path, seed: int, sizes: Mapping[str, int], advance: Callable[[int], None]) -> None:
    """Write `snli_ve_{train,dev,test}.jsonl` and `flickr30k-images/`; sizes count sentences that have a label.

    Every sentence is in the files three times, with images of all three labels. About one line in a hundred is an extra
    one with the gold label "-": the annotators did not agree.
    """
    images = root / "flickr30k-images"
    images.mkdir()
    sidecar: dict[str, Any] = {}
    for split, (name, annotators) in _SPLITS.items():
        lines: list[dict[str, Any]] = []
        sidecar[name] = {}
        missing, source = sizes[split], enumerate(blocks(seed, split, "snli_ve", BLOCK, config))
        while missing > 0:
            block, (scenes, rng) = next(source)
            ids = [f"{SPLITS.index(split) + 1}{block * BLOCK + index:08d}" for index in range(BLOCK)]
            captions = [sentence(describe_scene(scene, rng, 1)[0].text) for scene in scenes]
            chosen = _labelled(scenes, rng)[:missing]
            for index in dict.fromkeys(index for _, _, index in chosen):
                sidecar[name][ids[index]] = save_scene(scenes[index], images / f"{ids[index]}.jpg")
            for number in rng.permutation(len(chosen)).tolist():
                text, label, index = chosen[number]
                for gold in (label, "-") if rng.integers(100) == 0 else (label,):
                    votes = _votes(gold, annotators, rng)
                    lines.append(_line(ids[index], number, votes, gold, captions[index], sentence(text)))
            missing -= len(chosen)
            advance(len(chosen))
        dump_lines(root / f"snli_ve_{name}.jsonl", lines)
    dump(root / SIDECAR, sidecar)


def _labelled(scenes: Sequence[Scene], rng: np.random.Generator) -> list[tuple[str, str, int]]:
    """Sentences with their labels and the indices of their scenes."""
    found = triples(scenes, rng)
    return [(made.text, label, index) for made, of in found for label, index in zip(LABELS, of, strict=True)]


def _line(image: str, number: int, votes: list[str], gold: str, caption: str, text: str) -> dict[str, Any]:
    return {
        "annotator_labels": votes,
        "captionID": f"{image}.jpg#0",
        "gold_label": gold,
        "pairID": f"{image}.jpg#0r{number}{gold[0]}",
        "sentence1": caption,
        "sentence1_binary_parse": "",
        "sentence1_parse": "",
        "sentence2": text,
        "sentence2_binary_parse": "",
        "sentence2_parse": "",
        "Flickr30K_ID": image,
    }


def _votes(gold: str, count: int, rng: np.random.Generator) -> list[str]:
    """Labels of the annotators, most of them the gold label; without one, two vote for each of two labels."""
    if gold == "-":
        return list(LABELS[:2] * 2 + LABELS[2:])[: max(count, 2)]
    wrong = [label for label in LABELS if label != gold]
    others = [wrong[int(rng.integers(len(wrong)))] for _ in range(int(rng.integers((count + 1) // 2)))]
    return [gold] * (count - len(others)) + others
