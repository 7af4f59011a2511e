"""Settings of `pumer demo`."""

from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from pumer.settings.common import BatchSize, Count, Model, ModelJob, NewFolder, Pairs, Seed, known_reduction
from pumer.settings.data import QuestionsConfig
from pumer.settings.train import OptimizerConfig
from pumer.utils.config import config


@config
class DemoConfig(ModelJob):
    """Settings of `pumer demo`.

    Attributes:
        output: folder for data, models, results and report. A demo that was interrupted continues there.
        model: checkpoint to start from; by default the small ViLT that ships with the package.
        world: the questions.
        reduction: how the model is reduced.
        optimizer: learning rates of original and reduced model: small steps, because they know the questions already.
        blind_optimizer: of the unimodal baselines, which must forget.
        questions: how many training questions the original and the baselines see; the reduced model, whose teacher the
            original is, sees all of them.
        batch_size: questions per step.
        pairs: timed pairs of original and reduced model at batch 1 and at the original's best batch.
        largest_batch: where the search for the best batch ends.
        seed: of the fine-tunings.
    """

    output: NewFolder = Path("out/demo")
    model: Model = "small:vilt"
    world: QuestionsConfig = QuestionsConfig(train=2400, val=1500, heldout=600)
    reduction: Annotated[dict[str, Any], AfterValidator(known_reduction)] = field(
        default_factory=lambda: {
            "method": "pumer",
            "layers": [2, 5, 8],
            "prune_ratio": 0.1,
            "merge_ratio": 0.3,
            "text_merge_ratio": 0.2,
        }
    )
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-5, head_factor=1.0)
    blind_optimizer: OptimizerConfig = OptimizerConfig(lr=3e-4, head_factor=1.0)
    questions: Count = 900
    batch_size: BatchSize = 32
    pairs: Pairs = 12
    largest_batch: BatchSize = 64
    seed: Seed = 0
