"""Where and how everything is run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.pretrain_small.small import IMAGE_SIZE
from benchmarks.reproduce.cells import Cell, reduced
from benchmarks.reproduce.commands import Runner
from pumer.settings.common import Rule
from pumer.utils.errors import InputError
from pumer.utils.shipped import recipe_file

ORIGINAL, PUMER = "original", "pumer"
RULE: Rule = "official"
"""Of VQA accuracy."""


@dataclass(frozen=True)
class Setup:
    """Where and how everything is run.

    Attributes:
        out: models, answers, logs and records.
        runner: runs a command.
        scale: "world" or "full".
        data: one data folder per task; None: the world is written below `out`.
        recipes: folder of the recipes; None: those that ship.
        starts: checkpoint that fine-tuning starts from, by backbone, where it is not the recipe's.
        trained: fine-tuned unreduced models by backbone and task ("vilt/nlvr2"), which then are not trained here.
        galleries: retrieval is tested within so many galleries of so many images; None: within all.
        settings: of every training, such as "max_steps=2".
        tiny: the world is a handful of examples.
        batch: examples per forward when speed and memory are measured.
        pairs: rounds of timing.
        threads: of a command that shares the machine, and of one that has it alone.
    """

    out: Path
    runner: Runner
    scale: str = "world"
    data: Path | None = None
    recipes: Path | None = None
    starts: Mapping[str, str] = field(default_factory=dict)
    trained: Mapping[str, str] = field(default_factory=dict)
    galleries: str | None = "50x20"
    settings: tuple[str, ...] = ()
    tiny: bool = False
    batch: int = 32
    pairs: int = 20
    threads: tuple[int, int] = (1, 1)

    @property
    def native(self) -> int:
        """Pixels along a side that the models are made for."""
        return IMAGE_SIZE if self.scale == "world" else 384

    def recipe(self, backbone: str, task: str, kind: str) -> Path | str:
        """The settings of a training: the name of a recipe that ships, or the file in another folder."""
        name = f"{backbone}/{'world-' if self.scale == 'world' else ''}{task}-{kind}"
        return name if self.recipes is None else self.recipes / f"{name}.yaml"

    def data_of(self, task: str) -> Path:
        """A task's data folder."""
        return (self.data or self.out / "world") / task

    def weights(self, cell: Cell) -> str:
        """Folder of a cell's model, or its name on the hub."""
        return self.given(cell.weights) or str(self.out / "models" / cell.weights.name)

    def given(self, cell: Cell) -> str | None:
        """The model of a cell that is not trained here."""
        return self.trained.get(f"{cell.backbone}/{cell.task}") if cell == cell.original else None

    def file(self, cell: Cell, kind: str) -> Path:
        """A result of testing a cell: "result", "answers", "submission", "predictions" or "benchmark"."""
        return self.out / "tests" / f"{cell.name}.{kind}.json"

    def run(self, name: str, command: Sequence[str], alone: bool = False) -> str:
        """Run a command with its share of the machine."""
        force = [] if command[0] == "train" else ["--force"]  # what an interrupted attempt left may be replaced
        return self.runner([*command, *force], self.out / "logs" / f"{name}.txt", self.threads[alone])


def read_recipe(recipe: Path | str) -> dict[str, Any]:
    """A recipe as plain data.

    Raises:
        InputError: when it does not exist.
    """
    path = recipe_file(recipe)
    if not path.is_file():
        raise InputError(f"recipe {path} does not exist; leave out --recipes, or give another folder")
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def pumer_cell(setup: Setup, backbone: str, task: str, seed: int = 0) -> Cell:
    """PuMer as the recipe of a task has it."""
    return reduced(backbone, task, read_recipe(setup.recipe(backbone, task, PUMER))["reduction"], seed)
