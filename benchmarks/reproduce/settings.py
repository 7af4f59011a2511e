"""Settings of `python -m benchmarks reproduce`."""

from collections.abc import Collection, Iterable
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pumer.settings.common import BACKBONES, TASKS, BatchSize, Folder, Job, Model, NewFolder, Threads, gallery_sizes
from pumer.utils.config import config
from pumer.utils.errors import InputError

PAIRS = tuple(f"{backbone}/{task}" for backbone in BACKBONES for task in TASKS)


@config
class ReproduceConfig(Job):
    """Settings of `python -m benchmarks reproduce`.

    Attributes:
        out: models, answers, logs, records, and the report.
        scale: "world" trains the small models on the built-in world; "full" is the paper's data and models.
        data: folder with one data folder per task; None: the world is written below `out`.
        starts: checkpoints that fine-tuning starts from, by backbone; else the recipes'.
        trained: fine-tuned unreduced models by cell, such as "vilt/nlvr2", to use in place of training them.
        recipes: folder of the recipes; None: those that ship.
        only: names of tables; none: all.
        cells: such as "vilt/nlvr2"; none: all.
        seeds: of every row; None: three for the ViLT rows of Table 1, one for the rest.
        jobs: steps that run at once.
        galleries: retrieval is tested within so many sets of so many images, as in "50x20"; "all" within one.
        batch: examples per forward when speed and memory are measured.
        settings: of every training, for trials.
        smoke: two training steps on a tiny world: does everything run?
        results: folder that report and results are copied to; what it has of tables and tasks that were not run here
            stays there.
    """

    out: NewFolder = Path("out/reproduce")
    scale: Literal["world", "full"] = "world"
    data: Folder | None = None
    starts: dict[str, Model] = field(default_factory=dict)
    trained: dict[str, Model] = field(default_factory=dict)
    recipes: Path | None = None
    only: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()
    seeds: Annotated[int, Field(ge=1, le=1000)] | None = None
    jobs: Threads = 1
    galleries: str | None = None
    batch: BatchSize = 32
    settings: tuple[str, ...] = ()
    smoke: bool = False
    results: NewFolder | None = None

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if self.scale == "full" and self.data is None:
            raise InputError("--scale full needs --data FOLDER, with one data folder per task (vqav2, nlvr2, ...)")
        if self.smoke and self.results:
            raise InputError("--smoke gives metrics of a handful of examples; leave out --results")
        if self.trained and (self.seeds or 1) > 1:
            raise InputError(f"a model that is given has no other seeds; leave out --trained, or --seeds {self.seeds}")
        known("cell", (*self.cells, *self.trained), PAIRS)
        known("backbone", self.starts, BACKBONES)
        if self.galleries not in (None, "all"):
            gallery_sizes(str(self.galleries))


def known(what: str, names: Iterable[str], there_are: Collection[str]) -> None:
    """Refuse names that do not exist.

    Raises:
        InputError: with those that do.
    """
    for name in names:
        if name not in there_are:
            raise InputError(f"there is no {what} '{name}'; there are {', '.join(there_are)}")
