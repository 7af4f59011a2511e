"""Fine-tuning, with or without reduction, with or without the unreduced model as teacher."""

import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

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
from pumer.errors import InputError
from pumer.evaluate import TRAINING_RECORD, check_class, labels_of
from pumer.jobs import (
    Collator,
    Examples,
    best_device,
    make_inputs,
    progress_bar,
    reduction_from,
    task_class,
    text_length_of,
)
from pumer.patching import patch
from pumer.provenance import collect
from pumer.reducers import NoReduction
from pumer.tasks import Task
from pumer.tasks.statistics import bootstrap
from pumer.train_config import OptimizerConfig, TrainConfig, TrainingData
from pumer.trainer import CompleteCheckpoints, DistillingTrainer, ShowProgress, last_checkpoint

__all__ = ["OptimizerConfig", "TrainConfig", "TrainingData", "run"]

logger = logging.getLogger(__name__)

SELF = "self"
_DTYPES = {"fp32": "float32", "bf16": "bfloat16 autocast"}
_FREE_TO_CHANGE = {"resume", "workers", "log_steps", "keep", "report_to"}


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
    bar = progress_bar(enabled=progress)
    trainer, processor, checkpoint = _prepare(config, bar)
    main = trainer.is_world_process_zero()
    if main:
        write_json(config.output / TRAINING_RECORD, {"model": str(config.output), **collect(config)})
    with bar:
        outcome = trainer.train(resume_from_checkpoint=checkpoint)
    result = {
        "model": str(config.output),
        "steps": trainer.state.global_step,
        "seconds": outcome.metrics["train_runtime"],
        "samples_per_second": outcome.metrics["train_samples_per_second"],
        "loss": outcome.training_loss,
        "history": trainer.state.log_history,
        **collect(config, _DTYPES[config.precision]),
    }
    if config.data.eval is not None:
        result["accuracy"] = asdict(bootstrap(trainer.final_scores()))
    if main:
        save(trainer.model, config.output)
        processor.save_pretrained(config.output)
        write_json(config.output / TRAINING_RECORD, result)
    return result


def _prepare(config: TrainConfig, bar: Progress) -> tuple[DistillingTrainer, Any, str | None]:
    """The trainer, the model's processor, and the checkpoint to continue from."""
    data, task_type = config.data, task_class(config.task)
    reduction = reduction_from(config.reduction)
    task = task_type(task_type.vocabulary(data.root, data.min_answer_count))
    train = task.read(data.root, data.train, data.limit)
    held_out = task.read(data.root, data.eval, data.eval_limit) if data.eval else None
    set_seed(config.seed)
    model = task.model(config.model, task.labels)
    teacher = _teacher(config, task)
    patch(model, reduction)
    processor = load_processor(config.model)
    text_length = text_length_of(model, config.text_length)
    inputs = make_inputs(processor, text_length, config.resize, config.blank)
    checkpoint = _checkpoint(config)
    trainer = DistillingTrainer(
        model=model,
        args=_arguments(config),
        train_dataset=Examples(train, task, config.seed),
        eval_dataset=Examples(held_out, task) if held_out is not None else None,
        data_collator=Collator(task, inputs),
        task=task,
        teacher=teacher,
        distillation=config.distillation,
        head_factor=config.optimizer.head_factor,
        callbacks=_callbacks(config, processor, bar),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, processor, str(checkpoint) if checkpoint else None


def _teacher(config: TrainConfig, task: Task) -> PreTrainedModel | None:
    """The model to imitate: on the fast path, without reduction, and with the same answers."""
    if config.teacher is None:
        return None
    if config.teacher == SELF:
        set_seed(config.seed)
        teacher = task.model(config.model, task.labels)
    else:
        teacher = load(config.teacher)
        check_class(config.teacher, teacher, type(task))
        if type(task)(labels_of(teacher)).labels != task.labels:
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
        use_cpu=best_device().type == "cpu",
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
        ddp_find_unused_parameters=False,
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
            shutil.rmtree(folder, ignore_errors=True)  # another process may be at it
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
