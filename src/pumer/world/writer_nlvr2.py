"""Writes the built-in world's pair statements as NLVR2 files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from pumer.world.files import SIDECAR, dump, dump_lines, save_scene, sentence
from pumer.world.scenes import Scene, SceneConfig, blocks
from pumer.world.statements import BLOCK, PAIRS, Statement, pair_sets

_SPLITS = {"train": "train", "val": "dev", "test": "test1"}
_DIRECTORIES = 100


def fill(config: SceneConfig, root: Path, seed: int, sizes: Mapping[str, int], advance: Callable[[int], None]) -> None:
    """Write `{train,dev,test1}.json` and `images/{train/<directory>,dev,test1}/`; sizes count lines.

    Every sentence has four pairs, as in the original, and is true of two. `scenes.json` also has the template of every
    sentence, by the identifier of its lines.
    """
    sidecar: dict[str, Any] = {}
    for split, name in _SPLITS.items():
        lines: list[dict[str, Any]] = []
        images: dict[str, Any] = {}
        templates: dict[str, str] = {}
        source = (
            (scenes, made)
            for scenes, rng in blocks(seed, split, "nlvr2", BLOCK, config)
            for made in pair_sets(scenes, rng)
        )
        for number, (scenes, made) in enumerate(source):
            if len(lines) >= sizes[split]:
                break
            directory = {"directory": number % _DIRECTORIES} if name == "train" else {}
            folder = root.joinpath("images", name, *map(str, directory.values()))
            folder.mkdir(parents=True, exist_ok=True)
            asked = list(product(range(len(made.statements)), range(PAIRS)))[: sizes[split] - len(lines)]
            for place in sorted({place for _, place in asked}):
                for side, index in enumerate(made.pairs[place]):
                    file = f"{name}-{number}-{place}-img{side}.png"
                    images[file] = save_scene(scenes[index], folder / file)
            for which, place in asked:
                statement, identifier = made.statements[which], f"{name}-{number}-{place}-{which}"
                left, right = (scenes[index] for index in made.pairs[place])
                lines.append(_line(identifier, statement, left, right) | directory)
                templates[identifier] = statement.template
            advance(len(asked))
        dump_lines(root / f"{name}.json", lines)
        sidecar[name] = {"pictures": images, "templates": templates}
    dump(root / SIDECAR, sidecar)


def _line(identifier: str, statement: Statement, left: Scene, right: Scene) -> dict[str, Any]:
    label = str(statement.true_of(left, right))
    return {
        "validation": {"0": label},
        "sentence": sentence(statement.text),
        "left_url": "",
        "writer": "0",
        "label": label,
        "right_url": "",
        "synset": statement.feature.kind,
        "query": statement.template,
        "identifier": identifier,
        "extra_validations": {},
    }
