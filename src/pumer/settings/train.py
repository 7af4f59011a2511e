"""Settings of `pumer train`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pumer.settings.common import RETRIEVAL, AugmentConfig, Blank, Resize, known_method, known_task
from pumer.utils.arguments import in_range, there, writable_folders
from pumer.utils.errors import InputError
from pumer.utils.limits import check_checkpoint


@dataclass(frozen=True)
class OptimizerConfig:
    """Linear warm-up, then polynomial decay; defaults are the paper's for ViLT (docs/paper.md).

    Attributes:
        lr: peak learning rate of the cross-modal layers, and of all that the factors do not name.
        encoder_factor: what runs before the cross-modal layers (METER's two encoders and its modality embedding, ViLT's
            embeddings) learns with `lr` times this.
        head_factor: the task's head learns with `lr` times this.
        reduction_factor: the weights of a reduction that has some, which always start at random, likewise.
        end_lr: what `lr` has become after the last step; the factors apply to it too.
        betas: of AdamW.
        weight_decay: of all weights but biases and LayerNorms.
        warmup: fraction of the steps, in [0, 1).
        power: of the decay; 1 is linear.
        max_grad_norm: gradients whose norm is larger are scaled down to it; null for no clipping, as in the paper.
        name: "adamw", or "sgd": plain, without momentum.
    """

    lr: float = 1e-4
    encoder_factor: float = 1.0
    head_factor: float = 10.0
    reduction_factor: float = 10.0
    end_lr: float = 1e-7
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup: float = 0.1
    power: float = 1.0
    max_grad_norm: float | None = None
    name: Literal["adamw", "sgd"] = "adamw"

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if not self.lr > self.end_lr >= 0:
            raise InputError(f"optimizer.lr must be above end_lr={self.end_lr}, not {self.lr}")
        for name in ("encoder_factor", "head_factor", "reduction_factor"):
            if not getattr(self, name) >= 0:
                raise InputError(f"optimizer.{name} must not be negative, not {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"optimizer.warmup is a fraction of the steps in [0, 1), not {self.warmup}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"optimizer.betas must lie in [0, 1), not {self.betas}")
        if not self.weight_decay >= 0:
            raise InputError(f"optimizer.weight_decay must not be negative, not {self.weight_decay}")
        if not self.power > 0:
            raise InputError(f"optimizer.power must be above 0, not {self.power}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise InputError(f"optimizer.max_grad_norm must be above 0 or null, not {self.max_grad_norm}")


@dataclass(frozen=True)
class DistillationConfig:
    """Weights of the parts of the loss.

    Attributes:
        temperature: both logits are divided by it before the softmax; the divergence is multiplied by its
            square, so that its gradients keep their scale.
        task_weight: factor of the task's own loss.
        weight: factor of the divergence from the teacher's logits.
        hidden_weight: factor of the difference from the teacher's final hidden states, see
            `pumer.training.hidden.hidden_divergence`; 0, as in the paper, leaves it out.
    """

    temperature: float = 1.0
    task_weight: float = 1.0
    weight: float = 1.0
    hidden_weight: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if not self.temperature > 0:
            raise InputError(f"distillation.temperature must be above 0, not {self.temperature}")
        if min(self.task_weight, self.weight, self.hidden_weight) < 0:
            weights = f"task_weight={self.task_weight}, weight={self.weight}, hidden_weight={self.hidden_weight}"
            raise InputError(f"distillation weights must not be negative, not {weights}")


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

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        in_range(self, "data.")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `pumer train`.

    Attributes:
        model: folder or hub name of the checkpoint to start from; a new head is made where its head does not fit.
        output: folder for the trained model, its checkpoints and `run.json` (config, provenance, results).
        data: what to train and to evaluate on.
        task: name in `pumer.tasks.TASKS`.
        reduction: of the trained model: a mapping with `method` and its settings, or "none".
        teacher: folder or hub name of the fine-tuned unreduced model to imitate, "self" for the starting weights
            without reduction, null for no distillation.
        teacher_cache: ask the teacher about every training example once and keep its logits in a file, instead of
            asking in every step; true for a folder in `output`, or a folder that several runs share. Only where
            examples are the same in every epoch.
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
        image_size: pixels along a side of the pictures, a multiple of the patch size; null for the model's own. The
            trained model keeps it. A teacher sees the same pictures.
        resize: "square" or "aspect", see `pumer.tasks.Pixels`.
        augment: RandAugment of the training pictures, as a function of seed, epoch and example alone; null for none.
            The paper's is {operations: 2, magnitude: 9}.
        blank: "image" trains a text-only model, "text" an image-only one; for baselines.
        precision: "bf16" and "fp16" compute in 16 bits under autocast; weights stay in float32. "fp16" needs a GPU, and
            scales the loss.
        gradient_checkpointing: compute activations anew in the backward pass instead of keeping them: less memory,
            about a third more time.
        compile: compile the model with `torch.compile`; true, or the name of one of its backends.
        seed: of new weights and of the order of examples.
        workers: processes that read images.
        log_steps: steps between two lines of the training log.
        keep: checkpoints to keep; the best one is kept as well.
        report_to: "tensorboard" (written to `runs/` in `output`), "wandb", "mlflow", or another tracker that
            transformers' Trainer knows; all but the first must be installed.
        push_to_hub: upload the trained model, with its card, to the Hugging Face hub.
        hub_model_id: its name there, "user/model"; by default the name of `output` among the user's models.
        hub_private: whether only its owner sees it; null for the account's default.
        resume: continue from the last complete checkpoint in `output`; false removes the checkpoints and starts
            anew.
    """

    model: str
    output: Path
    data: TrainingData
    task: str = "vqav2"
    reduction: dict[str, Any] | str = "none"
    teacher: str | None = None
    teacher_cache: bool | Path = False
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: int = 10
    max_steps: int | None = None
    batch_size: int = 64
    accumulate: int = 1
    patience: int | None = None
    eval_steps: int | None = None
    text_length: int | None = None
    image_size: int | None = None
    resize: Resize = "square"
    augment: AugmentConfig | None = None
    blank: Blank = "none"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    compile: bool | str = False
    seed: int = 0
    workers: int = 0
    log_steps: int = 50
    keep: int = 1
    report_to: tuple[str, ...] = ("tensorboard",)
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private: bool | None = None
    resume: bool = True

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        in_range(self)
        known_task(self.task)
        known_method(self.reduction)
        if self.patience is not None and self.data.eval is None:
            raise InputError("patience counts evaluations; give data.eval=val, or patience=null")
        self._check_distillation()

    @property
    def written(self) -> tuple[Path, ...]:
        """What is written."""
        return (self.output,)

    def check_places(self) -> None:
        """Refuse files and folders that are not there, or could not be written."""
        check_checkpoint(self.model, self.image_size)
        if self.teacher not in (None, "self"):
            check_checkpoint(str(self.teacher))
        there("data folder", self.data.root)
        if self.output.resolve() == self.data.root.resolve():
            raise InputError(f"output {self.output} is the data folder; give the model a folder of its own")
        writable_folders(self.output)

    def _check_distillation(self) -> None:
        """Refuse what distillation cannot do together."""
        hidden = self.distillation.hidden_weight > 0
        if self.teacher is None and (hidden or self.teacher_cache is not False):
            what = "distillation.hidden_weight" if hidden else "teacher_cache"
            raise InputError(f"{what} needs a teacher; give teacher=FOLDER or teacher=self, or leave {what} out")
        if hidden and self.compile is not False:
            raise InputError("distillation.hidden_weight looks into the model, which compile hides; give compile=false")
        if self.teacher_cache is False:
            return
        reasons = {
            "augment changes the pictures in every epoch": self.augment is not None,
            f"task {self.task} draws other texts in every epoch": self.task in RETRIEVAL,
            "distillation.hidden_weight needs hidden states, of which no file is kept": hidden,
        }
        for reason, holds in reasons.items():
            if holds:
                raise InputError(f"teacher_cache keeps one answer per training example, but {reason}; leave out either")
