"""Settings of `pumer demo`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pumer.settings.common import known_method
from pumer.settings.data import QuestionsConfig
from pumer.settings.train import OptimizerConfig
from pumer.utils.arguments import in_range, writable_folders
from pumer.utils.limits import check_checkpoint


@dataclass(frozen=True)
class DemoConfig:
    """Settings of `pumer demo`.

    Attributes:
        output: folder for data, models, results and report. A demo that was interrupted continues there.
        model: checkpoint to start from; by default the small ViLT that ships with the package.
        world: the questions.
        reduction: how the model is reduced.
        optimizer: learning rates of original and reduced model: small steps, for they know the questions already.
        blind_optimizer: of the models that see one input alone, which must forget.
        questions: how many training questions the original and those two see; the reduced model, which imitates the
            original, sees all of them.
        batch_size: questions per step.
        pairs: timed pairs of original and reduced model at batch 1 and at the original's best batch.
        largest_batch: where the search for the best batch ends.
        seed: of the fine-tunings.
    """

    output: Path = Path("out/demo")
    model: Path | None = None
    world: QuestionsConfig = field(default_factory=lambda: QuestionsConfig(train=2400, val=2700, heldout=600))
    reduction: dict[str, Any] = field(
        default_factory=lambda: {
            "method": "pumer",
            "layers": [2, 5, 8],
            "prune_ratio": 0.1,
            "merge_ratio": 0.3,
            "text_merge_ratio": 0.2,
        }
    )
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-5, head_factor=1.0))
    blind_optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=3e-4, head_factor=1.0))
    questions: int = 1200
    batch_size: int = 32
    pairs: int = 20
    largest_batch: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        in_range(self)
        known_method(self.reduction)

    @property
    def written(self) -> tuple[Path, ...]:
        """What is written."""
        return (self.output,)

    def check_places(self) -> None:
        """Refuse folders that are not there, or could not be written."""
        if self.model is not None:
            check_checkpoint(self.model)
        writable_folders(self.output)
