"""Settings of `pumer train`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pumer.distill import DistillationConfig
from pumer.errors import InputError
from pumer.jobs import Blank
from pumer.tasks.images import Resize


@dataclass(frozen=True)
class TrainingData:
    """What to train and to evaluate on.

    Attributes:
        root: data folder with the task's official files.
        train: split to train on.
        eval: split to evaluate on, after every epoch and at the end; null for none.
        limit: train on so many examples, spread evenly over the split.
        eval_limit: evaluate on so many examples, spread evenly over the split.
        min_answer_count: answers that occur less often in train and val together are left out of the vocabulary.
    """

    root: Path
    train: str = "train"
    eval: str | None = "val"
    limit: int | None = None
    eval_limit: int | None = None
    min_answer_count: int = 9


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and decay, no gradient clipping; defaults are the paper's for ViLT (docs/paper.md).

    Attributes:
        lr: peak learning rate.
        head_factor: the task's head learns with `lr` times this.
        end_lr: learning rate after the last step.
        betas: of AdamW.
        weight_decay: of all weights but biases and LayerNorms.
        warmup: fraction of the steps, in [0, 1).
    """

    lr: float = 1e-4
    head_factor: float = 10.0
    end_lr: float = 1e-7
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup: float = 0.1

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if not self.lr > self.end_lr >= 0:
            raise InputError(f"optimizer.lr must be above end_lr={self.end_lr}, not {self.lr}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"optimizer.warmup is a fraction of the steps in [0, 1), not {self.warmup}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"optimizer.betas must lie in [0, 1), not {self.betas}")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `pumer train`.

    Attributes:
        model: folder or hub name of the checkpoint to start from; a new head is made where its head does not fit.
        output: folder for the trained model, its checkpoints and `train.json` (config, provenance, results).
        data: what to train and to evaluate on.
        task: name in `pumer.tasks.TASKS`.
        reduction: of the trained model: a mapping with `method` and its settings, or "none".
        teacher: folder or hub name of the fine-tuned unreduced model to imitate, "self" for the starting weights
            without reduction, null for no distillation.
        distillation: weights of the loss, where there is a teacher.
        optimizer: learning rates and their schedule.
        epochs: passes over the training examples.
        max_steps: stop after so many steps (and decay the learning rate over them) instead of after `epochs`.
        batch_size: examples per device and step.
        accumulate: steps whose gradients are averaged into one update.
        patience: stop after so many evaluations without a better accuracy, and keep the best model; null to
            train to the end and keep the last.
        eval_steps: evaluate and write a checkpoint every so many steps; null for after every epoch.
        text_length: questions are cut to this many tokens; by default to what the model can take.
        resize: "square" or "aspect", see `pumer.tasks.Pixels`.
        blank: "image" trains a text-only model, "text" an image-only one; for baselines.
        precision: "bf16" computes in bfloat16 under autocast; weights stay in float32.
        seed: of new weights and of the order of examples.
        workers: processes that read images.
        log_steps: steps between two lines of the training log.
        keep: checkpoints to keep; the best one is kept as well.
        report_to: trackers of transformers' Trainer.
        resume: continue from the last complete checkpoint in `output`; false removes the checkpoints and starts
            anew.
    """

    model: str
    output: Path
    data: TrainingData
    task: str = "vqav2"
    reduction: dict[str, Any] | str = "none"
    teacher: str | None = None
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: int = 10
    max_steps: int | None = None
    batch_size: int = 64
    accumulate: int = 1
    patience: int | None = None
    eval_steps: int | None = None
    text_length: int | None = None
    resize: Resize = "square"
    blank: Blank = "none"
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    workers: int = 0
    log_steps: int = 50
    keep: int = 1
    report_to: tuple[str, ...] = ("tensorboard",)
    resume: bool = True

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        for name in ("epochs", "batch_size", "accumulate", "log_steps", "keep"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("max_steps", "patience", "eval_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1 or null, not {value}")
        if self.patience is not None and self.data.eval is None:
            raise InputError("patience counts evaluations; give data.eval=val, or patience=null")
