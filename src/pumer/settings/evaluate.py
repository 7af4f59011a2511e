"""Settings of `pumer evaluate`."""

from pumer.settings import common
from pumer.utils.config import config


@config
class EvaluationData(common.DataRoot):
    """Where the examples are.

    Attributes:
        train: split from which the best constant answers are computed, where it is there; null for none.
    """

    train: common.Split | None = "train"


@config
class EvaluateConfig(common.SplitJob, common.ReadingJob):
    """Settings of `pumer evaluate`. Settings left at null are those of the model's own training.

    Attributes:
        split: of the task's official files; one without public answers needs `submission`.
        reduction: another reduction than the saved one, without fine-tuning: method and settings, or a reduction.json;
            "none" switches it off.
        blank: "image" or "text" hides that input from the model, "none" neither.
        output: result file (JSON).
        per_example: file for the answer and score of every example, to compare other runs `against`.
        against: `per_example` file of another run on the same examples.
        submission: file in the official result format.
        rule: VQAv2: "official" is what the challenge's script computes; "published" normalises answers always, also
            where all annotators wrote the same; null for official.
    """

    data: EvaluationData = EvaluationData()
    split: common.Split = "val"
    reduction: common.Reduction | None = None
    blank: common.Blank | None = None
    output: common.NewFile | None = None
    per_example: common.NewFile | None = None
    against: common.File | None = None
    submission: common.NewFile | None = None
    rule: common.Rule | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_rule(self.rule, self.task)
        if self.data.train is not None:
            common.known_split(self.data.train, self.task)
