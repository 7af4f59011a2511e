"""Settings of `pumer score`."""

from dataclasses import dataclass
from pathlib import Path

from pumer.settings.common import RETRIEVAL, Rule, gallery_sizes, known_rule, known_task
from pumer.utils.arguments import new_files
from pumer.utils.errors import InputError


@dataclass(frozen=True)
class ScoreConfig:
    """Settings of `pumer score`.

    Attributes:
        task: name in `pumer.tasks.TASKS`.
        annotations: official file with the right answers; for retrieval Karpathy's.
        predictions: file in the task's result format; for retrieval also a `.npy` file with the score of every image
            (row) with every caption (column) of its gallery, in the order of `annotations`, galleries one below the
            other, or the folder `scores` of `pumer evaluate`.
        questions: VQAv2: official file of questions; scores those alone. Null: all that are annotated.
        split: for retrieval: part of a file that holds all splits; null for "test".
        galleries: for retrieval: "50x20" if the file ranks within 50 galleries of 20 images each; null for one of all.
        per_example: file for one value per example.
        force: replace that file if it is there already.
        rule: VQAv2: see `pumer.settings.evaluate.EvaluateConfig`.
    """

    task: str
    annotations: Path
    predictions: Path
    questions: Path | None = None
    split: str | None = None
    galleries: str | None = None
    per_example: Path | None = None
    force: bool = False
    rule: Rule | None = None

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        known_task(self.task)
        known_rule(self.rule, self.task)
        options = {"questions": ("vqav2",), "split": RETRIEVAL, "galleries": RETRIEVAL}
        for name, tasks in options.items():
            if getattr(self, name) is not None and self.task not in tasks:
                raise InputError(f"--{name} is for {' and '.join(tasks)}, not for task {self.task}; leave it out")
        if self.galleries is not None:
            gallery_sizes(self.galleries)

    @property
    def written(self) -> tuple[Path, ...]:
        """What is written."""
        return () if self.per_example is None else (self.per_example,)

    def check_places(self) -> None:
        """Refuse files that are not there, or could not be written."""
        inputs = {name: getattr(self, name) for name in ("annotations", "questions", "predictions")}
        for name, path in inputs.items():
            if path is not None and not path.exists():
                raise InputError(f"{path} does not exist; give --{name} a file that does")
        read = self.predictions.iterdir() if self.predictions.is_dir() else ()
        new_files(self.per_example, force=self.force, inputs=[*inputs.values(), *read])
