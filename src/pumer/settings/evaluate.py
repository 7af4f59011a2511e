"""Settings of `pumer evaluate`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pumer.settings.common import Blank, Resize, Rule, gallery_sizes, known_method, known_rule, known_task
from pumer.utils.arguments import in_range, new_files, there, writable_folders
from pumer.utils.limits import check_checkpoint, checkpoint_files


@dataclass(frozen=True)
class EvaluationData:
    """Where the questions are.

    Attributes:
        root: data folder; by default the one the model was trained on.
        train: split from which the best constant answers are computed, where it is there; null for none.
    """

    root: Path | None = None
    train: str | None = "train"


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of `pumer evaluate`. Settings left at null are those of the model's own training.

    Attributes:
        model: folder or hub name.
        task: name in `pumer.tasks.TASKS`.
        data: where the questions are.
        split: "train", "val" or "test"; a split without public answers needs `submission`.
        limit: only so many questions, spread evenly over the split.
        reduction: another reduction than the saved one, without fine-tuning; "none" switches it off.
        batch_size: questions per forward pass.
        text_length: questions are cut to this many tokens; by default to what the model can take.
        image_size: pixels along a side of the pictures, without fine-tuning; a multiple of the patch size.
        resize: "square" or "aspect", see `pumer.tasks.Pixels`.
        blank: "image" or "text" hides that input from the model, "none" neither.
        workers: processes that read images.
        output: result file (JSON).
        per_example: file for the answer and score of every question, to compare other runs `against`.
        against: `per_example` file of another run on the same questions.
        submission: file in the official result format.
        galleries: for retrieval: "50x20" ranks within 50 galleries of 20 images each, with their captions; null within
            one of all.
        scores: for retrieval: folder that keeps the score of every pair, so that an evaluation that was interrupted
            goes on where it was.
        force: replace result files that are there already.
        rule: VQAv2: "official" is what the challenge's script computes; "published" normalises answers always, also
            where all annotators wrote the same; null for official.
    """

    model: str
    task: str | None = None
    data: EvaluationData = field(default_factory=EvaluationData)
    split: str = "val"
    limit: int | None = None
    reduction: dict[str, Any] | str | None = None
    batch_size: int = 64
    text_length: int | None = None
    image_size: int | None = None
    resize: Resize | None = None
    blank: Blank | None = None
    workers: int = 0
    output: Path | None = None
    per_example: Path | None = None
    against: Path | None = None
    submission: Path | None = None
    galleries: str | None = None
    scores: Path | None = None
    force: bool = False
    rule: Rule | None = None

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        in_range(self)
        known_task(self.task)
        known_method(self.reduction)
        known_rule(self.rule, self.task)
        if self.galleries is not None:
            gallery_sizes(self.galleries)

    @property
    def written(self) -> tuple[Path, ...]:
        """What is written."""
        return tuple(place for place in (*self._files, self.scores) if place is not None)

    def check_places(self) -> None:
        """Refuse files and folders that are not there, or could not be written."""
        check_checkpoint(self.model, self.image_size)
        there("data folder", self.data.root)
        there("file", self.against)
        new_files(*self._files, force=self.force, inputs=[self.against, *checkpoint_files(self.model)])
        writable_folders(self.scores)

    @property
    def _files(self) -> tuple[Path | None, ...]:
        return self.output, self.per_example, self.submission
