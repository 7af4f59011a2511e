"""Settings of `pumer score`."""

from pathlib import Path

from pumer.settings.common import RETRIEVAL, File, Galleries, Job, NewFile, Rule, Task, check_rule, known_split
from pumer.utils.config import config
from pumer.utils.errors import InputError
from pumer.utils.places import check_input


@config
class ScoreConfig(Job):
    """Settings of `pumer score`.

    Attributes:
        task: vqav2, nlvr2, snli_ve, flickr30k or coco.
        annotations: official file with the right answers; for retrieval Karpathy's.
        predictions: file in the task's result format; for retrieval also a `.npy` file with the score of every image
            (row) with every caption (column) of its gallery, in the order of `annotations`, galleries one below the
            other, or the folder `scores` of `pumer evaluate`.
        questions: VQAv2: official file of questions; scores those alone. Null: all that are annotated.
        split: for retrieval: part of a file that holds all splits; null for "test".
        galleries: for retrieval: "50x20" if the file ranks within 50 sets of 20 images each; null for one set of all.
        per_example: file for one value per example.
        force: replace that file if it is there already.
        rule: VQAv2: see `pumer.settings.evaluate.EvaluateConfig`.
    """

    task: Task
    annotations: File
    predictions: Path
    questions: File | None = None
    split: str | None = None
    galleries: Galleries | None = None
    per_example: NewFile | None = None
    force: bool = False
    rule: Rule | None = None

    def __post_init__(self) -> None:
        check_rule(self.rule, self.task)
        for name, tasks in {"questions": ("vqav2",), "split": RETRIEVAL, "galleries": RETRIEVAL}.items():
            if getattr(self, name) is not None and self.task not in tasks:
                raise InputError(f"--{name} is for {' and '.join(tasks)}, not for task {self.task}; leave it out")
        if self.split is not None:
            known_split(self.split, self.task)

    @property
    def read(self) -> list[Path]:
        """The files that it reads, which no result may replace."""
        folder = self.predictions.is_dir()
        return [*super().read, self.predictions, *(self.predictions.iterdir() if folder else ())]

    def check_places(self) -> None:
        """Refuse files that are not there, or could not be written."""
        super().check_places()
        folder = self.task in RETRIEVAL and self.predictions.is_dir()
        check_input("predictions", self.predictions / "scores.npy" if folder else self.predictions)
