"""Writes the built-in world's pair statements as NLVR2 files, for the reader that reads the real ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from rich.progress import Progress

from pumer.world.files import SIDECAR, describe_objects, dump, dump_lines, save_picture, sentence, whole
from pumer.world.scenes import Scene, generator, make_scene
from pumer.world.statements import PAIRS, PICTURES, PairSet, Statement, pair_sets

_NAMES = {"train": "train", "val": "dev", "test": "test1"}
_DIRECTORIES = 100
_BLOCKS = 1 << 40  # what is drawn for a block of scenes has its own random numbers, far from those of the scenes


def write_nlvr2(root: str | Path, seed: int, train: int, val: int, test: int) -> Path:
    """Write `{train,dev,test1}.json` and `images/{train/<directory>,dev,test1}/`.

    Every sentence stands with four pairs, as in the original: it is true of two. `scenes.json` holds what the format
    does not know: the objects of every picture, and the template of every sentence by the identifier of its lines.

    Args:
        root: the folder to write; an existing world there is replaced.
        seed: seed of scenes and sentences; pictures of different splits never share a scene.
        train: number of training lines; a multiple of four keeps sentences whole.
        val: the same of the split "dev".
        test: the same of the split "test1".

    Returns:
        `root`.

    Raises:
        InputError: `root` holds something that is not a world.
    """
    root, counts = Path(root), {"train": train, "val": val, "test": test}
    with whole(root) as aside, Progress(transient=True) as progress:
        told = progress.add_task(f"writing {root}", total=sum(counts.values()))
        sidecar: dict[str, Any] = {}
        for split, name in _NAMES.items():
            part = _Split(aside, name)
            for scenes, made in _sets(seed, split):
                if len(part.lines) >= counts[split]:
                    break
                progress.advance(told, part.add(scenes, made, counts[split] - len(part.lines)))
            dump_lines(aside / f"{name}.json", part.lines)
            sidecar[name] = {"pictures": part.pictures, "templates": part.templates}
        dump(aside / SIDECAR, sidecar)
    return root


def _sets(seed: int, split: str) -> Iterator[tuple[list[Scene], PairSet]]:
    """Sets without end, each with the scenes that its pairs count in."""
    for block in count():
        first = block * PICTURES
        scenes = [make_scene(generator(seed, split, first + index, "nlvr2")) for index in range(PICTURES)]
        for made in pair_sets(scenes, generator(seed, split, _BLOCKS + block, "nlvr2")):
            yield scenes, made


class _Split:
    """One split on its way to files."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name, self.sets = root, name, 0
        self.lines: list[dict[str, Any]] = []
        self.pictures: dict[str, Any] = {}
        self.templates: dict[str, str] = {}

    def add(self, scenes: Sequence[Scene], made: PairSet, most: int) -> int:
        """Add at most `most` lines of a set, statement by statement, and the pictures of their pairs; tell how many."""
        lines = [(number, place) for number in range(len(made.statements)) for place in range(PAIRS)][:most]
        folder = self.root / "images" / self.name
        directory = self.sets % _DIRECTORIES if self.name == "train" else None
        folder = folder if directory is None else folder / str(directory)
        folder.mkdir(parents=True, exist_ok=True)
        for place in sorted({place for _, place in lines}):
            for side, index in enumerate(made.pairs[place]):
                name = f"{self.name}-{self.sets}-{place}-img{side}.png"
                save_picture(scenes[index], folder / name)
                self.pictures[name] = {"objects": describe_objects(scenes[index])}
        for number, place in lines:
            statement, (left, right) = made.statements[number], made.pairs[place]
            line = _line(f"{self.name}-{self.sets}-{place}-{number}", statement, scenes[left], scenes[right])
            self.lines.append(line if directory is None else line | {"directory": directory})
            self.templates[line["identifier"]] = statement.template
        self.sets += 1
        return len(lines)


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
