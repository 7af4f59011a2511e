"""Settings of `pumer train`."""

import re
from pathlib import Path
from typing import Literal

from pumer.settings import common
from pumer.settings.common import RETRIEVAL, known_split
from pumer.utils.config import config
from pumer.utils.errors import InputError, some
from pumer.utils.limits import check_checkpoint
from pumer.utils.places import check_not_exported

_OWN_FILES = re.compile(
    r"\..*|checkpoint-\d+.*|runs|teacher|run\.json|config\.json|reduction\.json|.*\.safetensors.*"
    r"|.*\.(log|out|err)|lost\+found"
)
"""What a run writes into its folder before its end, its log (`pumer train ... > OUTPUT/train.log`), and what a new disk
holds."""


@config
class OptimizerConfig:
    """Linear warm-up, then polynomial decay; defaults are the paper's for ViLT (docs/paper.md).

    Attributes:
        lr: peak learning rate of the cross-modal layers, and of all that the factors do not name.
        encoder_factor: factor of `lr` for what runs before the cross-modal layers (METER's two encoders and its
            modality embedding, ViLT's embeddings).
        head_factor: factor of `lr` for the task's head.
        reduction_factor: factor of `lr` for the weights of a reduction that has some, which always start at random.
        end_lr: what `lr` has become after the last step; the factors apply to it too.
        betas: of AdamW.
        weight_decay: of all weights but biases and LayerNorms.
        warmup: fraction of the steps, in [0, 1).
        power: of the decay; 1 is linear.
        max_grad_norm: gradients whose norm is larger are scaled down to it; null for no clipping, as in the paper.
        name: "adamw", or "sgd": plain, without momentum.
    """

    lr: common.Positive = 1e-4
    encoder_factor: common.NotNegative = 1.0
    head_factor: common.NotNegative = 10.0
    reduction_factor: common.NotNegative = 10.0
    end_lr: common.NotNegative = 1e-7
    betas: tuple[common.BelowOne, common.BelowOne] = (0.9, 0.98)
    weight_decay: common.NotNegative = 0.01
    warmup: common.BelowOne = 0.1
    power: common.Positive = 1.0
    max_grad_norm: common.Positive | None = None
    name: Literal["adamw", "sgd"] = "adamw"

    def __post_init__(self) -> None:
        if self.lr <= self.end_lr:
            raise InputError(f"lr must be above end_lr={self.end_lr}, not {self.lr}")


@config
class DistillationConfig:
    """Weights of the parts of the loss.

    Attributes:
        temperature: both logits are divided by it before the softmax; the divergence is multiplied by its
            square, so that its gradients keep their scale.
        task_weight: factor of the task's own loss.
        weight: factor of the divergence from the teacher's logits.
        hidden_weight: factor of the difference from the teacher's final hidden states, see
            `pumer.training.distillation.hidden_divergence`; 0, as in the paper, leaves it out.
    """

    temperature: common.Positive = 1.0
    task_weight: common.NotNegative = 1.0
    weight: common.NotNegative = 1.0
    hidden_weight: common.NotNegative = 0.0


@config
class TrainingData:
    """What to train and to evaluate on.

    Attributes:
        root: data folder with the task's official files.
        train: split to train on.
        eval: split to evaluate on, after every epoch and at the end; null for none.
        limit: train on so many examples, spread evenly over the split.
        eval_limit: evaluate on so many examples, spread evenly over the split.
        min_answer_count: answers that occur less often in train and val together are left out of the vocabulary.
        add_words: give words that the tokenizer splits, and that occur five times or more in the training texts, tokens
            of their own. For the small models that ship, which know the words of the built-in world alone.
    """

    root: common.Folder
    train: common.Split = "train"
    eval: common.Split | None = "val"
    limit: common.Count | None = None
    eval_limit: common.Count | None = None
    min_answer_count: common.Count = 9
    add_words: bool = False


@config
class TrainConfig(common.ReadingJob):
    """Settings of `pumer train`.

    Attributes:
        model: checkpoint to start from: folder, hub name, or one that ships, such as small:vilt; a new head is made
            where its head does not fit.
        output: folder for the trained model, its checkpoints and `run.json` (config, provenance, results).
        data: what to train and to evaluate on.
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
        image_size: pixels along a side of the images, a multiple of the patch size; null for the model's own. The
            trained model keeps it. A teacher sees the same images.
        augment: RandAugment of the training images, as a function of seed, epoch and example alone; null for none.
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

    output: common.NewFolder
    data: TrainingData
    task: common.Task = "vqav2"
    reduction: common.Reduction = "none"
    teacher: common.Model | None = None
    teacher_cache: bool | Path = False
    distillation: DistillationConfig = DistillationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    epochs: common.Count = 10
    max_steps: common.Count | None = None
    batch_size: common.BatchSize = 64
    accumulate: common.BatchSize = 1
    patience: common.Count | None = None
    eval_steps: common.Count | None = None
    resize: common.Resize = "square"
    augment: common.AugmentConfig | None = None
    blank: common.Blank = "none"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    compile: bool | str = False
    seed: common.Seed = 0
    workers: common.Processes = 0
    log_steps: common.Count = 50
    keep: common.Count = 1
    report_to: tuple[str, ...] = ("tensorboard",)
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private: bool | None = None
    resume: bool = True

    def __post_init__(self) -> None:
        known_split(self.data.train, self.task)
        if self.data.eval is not None:
            known_split(self.data.eval, self.task)
        if self.patience is not None and self.data.eval is None:
            raise InputError("patience counts evaluations; give data.eval=val, or patience=null")
        self._check_distillation()

    def check_places(self) -> None:
        """Refuse files and folders that are missing or not writable."""
        super().check_places()
        check_not_exported(self.model, "train")
        if self.teacher not in (None, "self"):
            check_checkpoint(str(self.teacher))
        if self.output.resolve() == self.data.root.resolve():
            raise InputError(f"output {self.output} is the data folder; give the model a folder of its own")
        names = [file.name for file in self.output.iterdir()] if self.output.is_dir() else []
        if names and not any(map(_OWN_FILES.fullmatch, names)):
            raise InputError(f"output {self.output} holds other files ({some(sorted(names), 3)}); give a new folder")

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
            "augment changes the images in every epoch": self.augment is not None,
            f"task {self.task} draws other texts in every epoch": self.task in RETRIEVAL,
            "distillation.hidden_weight needs hidden states, of which no file is kept": hidden,
        }
        for reason, holds in reasons.items():
            if holds:
                raise InputError(f"teacher_cache keeps one answer per training example, but {reason}; leave out either")
