"""Fine-tuning, with or without reduction, with or without the unreduced model as teacher."""

import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import Progress
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from pumer.checkpoint import load, load_processor, read_json, save, write_json
from pumer.config import to_dict
from pumer.distill import DistillationConfig
from pumer.errors import InputError
from pumer.evaluate import TRAINING_RECORD, labels_of
from pumer.jobs import Blank, Collator, Examples, make_inputs, progress_bar, reduction_from, task_class, text_length_of
from pumer.patching import patch
from pumer.provenance import collect
from pumer.reducers import NoReduction
from pumer.tasks import Task
from pumer.tasks.images import Resize
from pumer.tasks.statistics import bootstrap
from pumer.trainer import CompleteCheckpoints, DistillingTrainer, ShowProgress, last_checkpoint

logger = logging.getLogger(__name__)

SELF = "self"
_DTYPES = {"fp32": "float32", "bf16": "bfloat16 autocast"}
_FREE_TO_CHANGE = {"resume", "workers", "log_steps", "keep", "report_to"}


@dataclass(frozen=True)
class TrainingData:
    """What to train and to evaluate on.

    Attributes:
        root: data folder with the task's official files.
        train: split to train on.
        eval: split to evaluate on, after every epoch and at the end; null for none.
        limit: train on the first so many examples.
        eval_limit: evaluate on the first so many examples.
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
    """AdamW with linear warm-up and linear decay, no gradient clipping; defaults are PAPER.md section 5's for ViLT.

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


def run(config: TrainConfig, progress: bool = True) -> dict[str, Any]:
    """Fine-tune a model; a run that was interrupted continues from its last complete checkpoint.

    Args:
        config: what to train, on what, how.
        progress: show a progress bar on stderr.

    Returns:
        `model` (the folder), `steps`, `seconds`, `samples_per_second` and `loss` of this call, `accuracy` of the
        saved model on the evaluation split (`mean`, `low`, `high`; absent without one), `history` (all logged
        values), and the provenance. The same dict is `train.json` in the folder.

    Raises:
        InputError: for whatever the user can correct.
    """
    reduction = reduction_from(config.reduction)
    task_type = task_class(config.task)
    task = task_type(task_type.vocabulary(config.data.root, config.data.min_answer_count))
    train = task.read(config.data.root, config.data.train, config.data.limit)
    held_out = task.read(config.data.root, config.data.eval, config.data.eval_limit) if config.data.eval else None
    set_seed(config.seed)
    model = task.model(config.model, task.labels)
    teacher = _teacher(config, task)
    patch(model, reduction)
    processor = load_processor(config.model)
    text_length = text_length_of(model, config.text_length)
    inputs = make_inputs(processor, text_length, config.resize, config.blank)
    checkpoint, bar = _checkpoint(config), progress_bar(enabled=progress)
    trainer = DistillingTrainer(
        model=model,
        args=_arguments(config),
        train_dataset=Examples(train),
        eval_dataset=Examples(held_out) if held_out is not None else None,
        data_collator=Collator(task, inputs),
        task=task,
        teacher=teacher,
        distillation=config.distillation,
        head_factor=config.optimizer.head_factor,
        callbacks=_callbacks(config, processor, bar),
    )
    trainer.remove_callback(PrinterCallback)
    main = trainer.is_world_process_zero()
    if main:
        write_json(config.output / TRAINING_RECORD, {"model": str(config.output), **collect(config)})
    with bar:
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    result = {
        "model": str(config.output),
        "steps": trainer.state.global_step,
        "seconds": outcome.metrics["train_runtime"],
        "samples_per_second": outcome.metrics["train_samples_per_second"],
        "loss": outcome.training_loss,
        "history": trainer.state.log_history,
        **collect(config, _DTYPES[config.precision]),
    }
    if held_out is not None:
        result["accuracy"] = asdict(bootstrap(trainer.final_scores()))
    if main:
        save(model, config.output)
        processor.save_pretrained(config.output)
        write_json(config.output / TRAINING_RECORD, result)
    return result


def _teacher(config: TrainConfig, task: Task) -> PreTrainedModel | None:
    """The model to imitate: on the fast path, without reduction, and with the same answers."""
    if config.teacher is None:
        return None
    if config.teacher == SELF:
        set_seed(config.seed)
        teacher = task.model(config.model, task.labels)
    else:
        teacher = load(config.teacher)
        if labels_of(teacher) != task.labels:
            raise InputError(
                f"teacher {config.teacher} knows other answers ({len(labels_of(teacher))}) than the data in "
                f"{config.data.root} ({len(task.labels)}); train it on the same data"
            )
    return patch(teacher, NoReduction()).requires_grad_(False).eval()


def _arguments(config: TrainConfig) -> TrainingArguments:
    """The settings in transformers' words."""
    optimizer, moment = config.optimizer, "steps" if config.eval_steps else "epoch"
    return TrainingArguments(
        output_dir=str(config.output),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate,
        learning_rate=optimizer.lr,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        weight_decay=optimizer.weight_decay,
        max_grad_norm=0.0,
        lr_scheduler_type="polynomial",
        lr_scheduler_kwargs={"lr_end": optimizer.end_lr, "power": 1.0},
        warmup_steps=optimizer.warmup,
        bf16=config.precision == "bf16",
        eval_strategy=moment if config.data.eval else "no",
        save_strategy=moment,
        eval_steps=config.eval_steps,
        save_steps=config.eval_steps or 500,
        save_total_limit=config.keep,
        load_best_model_at_end=config.patience is not None,
        metric_for_best_model="accuracy" if config.patience is not None else None,
        logging_steps=config.log_steps,
        report_to=list(config.report_to),
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=config.seed,
    )


def _callbacks(config: TrainConfig, processor: Any, bar: Progress) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = [CompleteCheckpoints(processor)]
    if config.patience is not None:
        callbacks.append(EarlyStoppingCallback(config.patience))
    if not bar.disable:
        callbacks.append(ShowProgress(bar))
    return callbacks


def _checkpoint(config: TrainConfig) -> Path | None:
    """Where to continue; refuses to continue a run with other settings."""
    found = last_checkpoint(config.output)
    if not config.resume:
        for folder in config.output.glob("checkpoint-*"):
            shutil.rmtree(folder)
        return None
    if found is None:
        return None
    before, now = read_json(config.output / TRAINING_RECORD)["config"], to_dict(config)
    for name in now.keys() - _FREE_TO_CHANGE:
        if before.get(name) != now[name]:
            raise InputError(
                f"{config.output} holds a run with {name}={before.get(name)}, not {now[name]}; "
                "give another output, or resume=false to start anew"
            )
    logger.info("continuing from %s", found)
    return found
