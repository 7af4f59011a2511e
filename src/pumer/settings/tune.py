"""Settings of `pumer tune`."""

from dataclasses import fields
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pumer.settings import common
from pumer.utils.config import config
from pumer.utils.errors import InputError, unknown
from pumer.utils.places import check_new_folder, check_not_exported

STUDY = "study.journal"
"""The record of all trials in the folder of a tuning."""
INSIDE = ("pumer", "tome", "evit", "cls", "attention-received", "l2norm", "random", "pooling")
"""Methods that can be searched in the layers of models with a head."""
DECODER = ("pumer", "fastv", "pyramiddrop", "tome", "attention-received", "l2norm", "random", "pooling")
"""In a decoder."""
PROMPT = ("divprune", "cdpruner", "visionzip", "vispruner", "simignore", "random-prompt")
"""Before a decoder."""


def _tunable(method: str) -> str:
    names = tuple(dict.fromkeys((*INSIDE, *DECODER, *PROMPT)))
    if method not in names:
        raise InputError(unknown("method to search", method, names))
    return method


@config
class BudgetConfig:
    """What the schedule has to meet: one of these.

    Attributes:
        speedup: so many times as fast as the unreduced model.
        latency_ms: so many milliseconds for a forward of `timed_batch` examples.
        memory: so many MiB for the cache of the longest calibration prompt, of a model that generates.
        accuracy_drop: at most so much accuracy lost on the calibration examples (0.01 is one point), as fast as that
            allows.
    """

    speedup: Annotated[float, Field(gt=1, le=100)] | None = None
    latency_ms: Annotated[float, Field(gt=0, le=10**6)] | None = None
    memory: Annotated[float, Field(gt=0, le=10**6)] | None = None
    accuracy_drop: common.BelowOne | None = None

    @property
    def given(self) -> dict[str, float]:
        """The one that is given, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@config
class CalibrationData(common.DataRoot):
    """Where the calibration examples are.

    Attributes:
        split: whose last examples are used; never one that results are reported on, and "test" splits are refused.
    """

    split: common.Split = "train"


@config
class TuneConfig(common.ReadingJob):
    """Settings of `pumer tune`. Settings left at null are those of the model's own training.

    Attributes:
        out: folder for the model with its best reduction, the card and the record of all trials. A tuning that was
            interrupted goes on there; with more `trials` or `minutes`, so does a finished one.
        cost: what a speed-up is: "time", measured on this machine, or "macs", counted.
        methods: methods that are searched; null for pumer and tome, and for pumer, fastv and divprune of a model that
            generates.
        examples: calibration examples.
        trials: schedules that are tried, at most.
        minutes: after so many no further trial starts.
        batch_size: calibration examples per forward pass.
        timed_batch: examples per forward pass where time is measured.
        pairs: interleaved rounds in which the best schedules are timed.
        threads: CPU threads; null for torch's own choice.
        prompt: what a model that generates is asked; see `pumer evaluate`.
        max_new_tokens: tokens of an answer of a model that generates, whose distributions are compared; null for 16.
        seed: of the search.
    """

    out: common.NewFolder
    budget: BudgetConfig = BudgetConfig()
    cost: Literal["time", "macs"] = "time"
    methods: Annotated[tuple[Annotated[str, AfterValidator(_tunable)], ...], Field(min_length=1)] | None = None
    data: CalibrationData = CalibrationData()
    examples: common.Count = 512
    trials: common.Count = 100
    minutes: Annotated[float, Field(gt=0, le=10**6)] = 20.0
    batch_size: common.BatchSize = 64
    timed_batch: common.BatchSize = 32
    pairs: common.Pairs = 10
    threads: common.Threads | None = None
    prompt: str | None = None
    max_new_tokens: common.Count | None = None
    seed: common.Seed = 0

    def __post_init__(self) -> None:
        budgets = tuple(field.name for field in fields(BudgetConfig))
        if len(given := self.budget.given) != 1:
            named = ", ".join(f"budget.{name}={value}" for name, value in given.items()) or "no budget"
            raise InputError(f"{named} given; give one of {', '.join(f'budget.{name}' for name in budgets)}")
        common.known_split(self.data.split, self.task)
        if "test" in self.data.split:
            raise InputError(f"data.split is {self.data.split}, which is for final results; give train, or val")
        if self.cost == "macs" and self.budget.latency_ms is not None:
            raise InputError(f"budget.latency_ms={self.budget.latency_ms} is time, but cost is macs; give cost=time")

    def check_places(self) -> None:
        """Refuse a model that is missing or exported, and a folder that is not writable or holds something else."""
        super().check_places()
        check_not_exported(self.model, "tune")
        check_new_folder(self.out)
        if self.out.is_dir() and any(self.out.iterdir()) and not (self.out / STUDY).is_file():
            raise InputError(f"{self.out} holds other files, no tuning; give a new folder")
