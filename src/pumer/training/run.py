"""Fine-tuning, with or without reduction, with or without the unreduced model as teacher."""

import logging
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from pumer.backbones.image_size import set_image_size
from pumer.checkpoint import TRAINING_RECORD, load_processor, restore_learned, save, saved_files
from pumer.evaluation.statistics import bootstrap
from pumer.patching import patch
from pumer.reducers import reduction_from
from pumer.settings.train import OptimizerConfig, TrainConfig, TrainingData
from pumer.tasks import Inputs, task_class
from pumer.tasks.fingerprint import data_fingerprint
from pumer.tasks.loading import Collator, Examples
from pumer.training import hub
from pumer.training.callbacks import ShowProgress
from pumer.training.checkpoints import ANEW, check_whole, checkpoints, last_checkpoint, step_of
from pumer.training.model_card import FILE as CARD
from pumer.training.model_card import model_card
from pumer.training.preflight import check
from pumer.training.stopping import StopOnSignal, write_errors_stop
from pumer.training.teacher import Teacher, teacher_of
from pumer.training.teacher_cache import RememberedTeacher, remember
from pumer.training.trainer import DistillingTrainer
from pumer.utils.config import to_dict
from pumer.utils.errors import InputError
from pumer.utils.files import read_json, write_json, write_text
from pumer.utils.locks import only_one
from pumer.utils.processes import is_main_process
from pumer.utils.progress import progress_bar
from pumer.utils.provenance import collect
from pumer.utils.tensors import best_device

__all__ = ["OptimizerConfig", "TrainConfig", "TrainingData", "run"]

logger = logging.getLogger(__name__)

_DTYPES = {"fp32": "float32", "bf16": "bfloat16 autocast", "fp16": "float16 autocast"}
_OPTIMIZERS = {"adamw": "adamw_torch_fused", "sgd": "sgd"}
_FREE_TO_CHANGE = {"resume", "workers", "log_steps", "keep", "report_to", "teacher_cache"}
_FREE_TO_CHANGE |= {"push_to_hub", "hub_model_id", "hub_private"}
_CHECKPOINTING = "activation_checkpointing"
"""What `TrainingArguments` calls it; "gradient_checkpointing" in older versions."""


@dataclass(frozen=True)
class _Prepared:
    """A training that can begin.

    Attributes:
        trainer: with model, teacher and data.
        processor: the model's.
        checkpoint: to continue from.
        fingerprint: of the data.
    """

    trainer: DistillingTrainer
    processor: Any
    checkpoint: Path | None
    fingerprint: str


def run(config: TrainConfig, progress: bool = True) -> dict[str, Any]:
    """Fine-tune a model; a run that was interrupted continues from its last complete checkpoint.

    Args:
        config: what to train, on what, how.
        progress: show a progress bar on stderr.

    Returns:
        `model` (the folder), `steps`, `resumed_from` (the step that this call went on from), and of this call alone
        `seconds`, of which `input_seconds` were spent waiting for examples, `samples_per_second` and `loss` (None where
        nothing was left to train); `accuracy` of the saved model on the evaluation split (`mean`, `low`, `high`) and
        its number of `questions` (both absent without one), `history` (all logged values), `data_fingerprint`, the
        provenance, and `began`, the `date` of the first call. The same dict is `run.json` in the folder; without
        results, it is there from the beginning. The folder gets a model card as well.

    Raises:
        InputError: for whatever the user can correct, another training in the same folder among it; for a loss that is
            NaN; for a full disk.
        Interrupted: after Ctrl-C or SIGTERM, with the current step saved.
    """
    inputs = check(config)
    with only_one(config.output), write_errors_stop(config.output):
        return _run(config, inputs, progress_bar(enabled=progress))


def _run(config: TrainConfig, inputs: Inputs, bar: Progress) -> dict[str, Any]:
    """Train in a folder that no other process writes."""
    stop, repository = StopOnSignal(), None
    if config.push_to_hub and is_main_process():
        repository = hub.create(config.hub_model_id or config.output.name, config.hub_private)
    prepared = _prepare(config, inputs, bar, stop)
    trainer = prepared.trainer
    main = trainer.is_world_process_zero()
    record = {"model": str(config.output), "data_fingerprint": prepared.fingerprint}
    record |= collect(config, _DTYPES[config.precision])
    record["began"] = (_record(config) if prepared.checkpoint else record).get("began", record["date"])
    if main and prepared.checkpoint is None:
        for file in saved_files(config.output):  # of an earlier run, whose record this one's takes the place of
            file.unlink()
        write_json(config.output / TRAINING_RECORD, record)
    with bar, stop.listening():
        outcome = trainer.train(resume_from_checkpoint=prepared.checkpoint and str(prepared.checkpoint))
    trainer.check_weights()
    steps, before = trainer.state.global_step, step_of(prepared.checkpoint) if prepared.checkpoint else 0
    seconds, trained = outcome.metrics["train_runtime"], steps - before
    result = {
        **record,
        "steps": steps,
        "resumed_from": before,
        "seconds": seconds,
        "input_seconds": round(trainer.input_seconds, 4),
        "samples_per_second": round(trained * trainer.examples_per_step / seconds, 3),
        "loss": trainer.summed_loss / trained if trained else None,
        "history": [_without_nan(entry) for entry in trainer.state.log_history],
    }
    if config.data.eval is not None:
        scores, sources = trainer.final_scores()
        result |= {"questions": len(scores), "accuracy": asdict(bootstrap(scores, sources))}
    weights = trainer.gathered_weights()
    if main:
        save(trainer.model, config.output, weights)
        prepared.processor.save_pretrained(config.output)
        write_json(config.output / TRAINING_RECORD, result)
        write_text(config.output / CARD, str(model_card(config, result)))
    if repository is not None:
        hub.upload(repository, config.output)
    return result


def _without_nan(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Logged values with null for what JSON has no number for: norms of gradients that float16's scaler skipped."""
    return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in entry.items()}


def _prepare(config: TrainConfig, inputs: Inputs, bar: Progress, stop: StopOnSignal) -> _Prepared:
    """Read the data, make the models."""
    checkpoint = _checkpoint(config)
    data, task_type = config.data, task_class(config.task)
    task = task_type(task_type.vocabulary(data.root, data.min_answer_count))
    train = task.read(data.root, data.train, data.limit)
    held_out = task.read(data.root, data.eval, data.eval_limit) if data.eval else None
    splits = [split for split in (data.train, data.eval) if split is not None]
    fingerprint = data_fingerprint(task_type, data.root, splits, [*train, *(held_out or [])])
    if checkpoint is not None and _record(config)["data_fingerprint"] != fingerprint:
        raise InputError(
            f"{data.root} is not what the run in {config.output} began with; "
            "give another output, or resume=false to start anew"
        )
    set_seed(config.seed)
    model, processor = task.model(config.model, task.labels), load_processor(config.model)
    set_image_size(config.image_size, model, processor)
    teacher: Teacher | RememberedTeacher | None = teacher_of(config, task, model)
    patch(model, reduction_from(config.reduction))
    restore_learned(model, config.model)
    arguments = _one_device(_arguments(config))
    examples, collate = Examples(train, task, config.seed), Collator(task, inputs, config.augment, config.seed)
    if config.teacher_cache is not False and isinstance(teacher, Teacher):
        teacher = remember(teacher, config, examples, collate, fingerprint, arguments.device, bar)
    trainer = DistillingTrainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        eval_dataset=Examples(held_out, task, training=False) if held_out is not None else None,
        data_collator=collate,
        task=task,
        processor=processor,
        teacher=teacher,
        distillation=config.distillation,
        optimizer=config.optimizer,
        keep=config.keep,
        callbacks=_callbacks(config, stop, bar),
    )
    trainer.remove_callback(PrinterCallback)
    return _Prepared(trainer, processor, checkpoint, fingerprint)


def _arguments(config: TrainConfig) -> TrainingArguments:
    """The settings in transformers' words."""
    optimizer, moment = config.optimizer, "steps" if config.eval_steps else "epoch"
    known = {field.name for field in fields(TrainingArguments)}
    checkpointing = _CHECKPOINTING if _CHECKPOINTING in known else "gradient_checkpointing"
    return TrainingArguments(
        output_dir=str(config.output),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate,
        optim=_OPTIMIZERS[optimizer.name],
        learning_rate=optimizer.lr,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm or 0.0,
        lr_scheduler_type="polynomial",
        lr_scheduler_kwargs={"lr_end": optimizer.end_lr, "power": optimizer.power},
        warmup_steps=optimizer.warmup,
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        torch_compile=bool(config.compile),
        torch_compile_backend=config.compile if isinstance(config.compile, str) else None,
        **{checkpointing: config.gradient_checkpointing},
        use_cpu=best_device().type == "cpu",
        eval_strategy=moment if config.data.eval else "no",
        save_strategy=moment,
        eval_steps=config.eval_steps,
        save_steps=config.eval_steps or 500,
        restore_callback_states_from_checkpoint=True,
        load_best_model_at_end=config.patience is not None,
        metric_for_best_model="accuracy" if config.patience is not None else None,
        logging_steps=config.log_steps,
        logging_nan_inf_filter=False,  # a loss that is no number stops the run
        report_to=list(config.report_to),
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=config.seed,
    )


def _one_device(arguments: TrainingArguments) -> TrainingArguments:
    """A process trains on one device: Trainer would spread a batch over all it sees, without autocast or compile."""
    if arguments.n_gpu > 1:
        logger.warning(
            "one of %d GPUs is used; `torchrun --nproc-per-node %d -m pumer train ...` uses all",
            arguments.n_gpu,
            arguments.n_gpu,
        )
        arguments._n_gpu = 1
    return arguments


def _callbacks(config: TrainConfig, stop: StopOnSignal, bar: Progress) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = [stop]
    if config.patience is not None:
        callbacks.append(EarlyStoppingCallback(config.patience))
    if not bar.disable:
        callbacks.append(ShowProgress(bar))
    return callbacks


def _checkpoint(config: TrainConfig) -> Path | None:
    """Where to continue; refuses to continue a run with other settings."""
    if not config.resume:
        if saved_files(config.output) and not os.path.lexists(config.output / TRAINING_RECORD):
            _record(config)  # refuses: these weights are not of a run to begin anew
        for folder in checkpoints(config.output) if is_main_process() else ():
            shutil.rmtree(folder)
        return None
    found = last_checkpoint(config.output)
    if found is None and not saved_files(config.output):
        return None
    before, now = _record(config)["config"], to_dict(config)
    for name in now.keys() - _FREE_TO_CHANGE:
        if before.get(name) != now[name]:
            raise InputError(
                f"{config.output} holds a run with {name}={before.get(name)}, not {now[name]}; "
                "give another output, or resume=false to start anew"
            )
    if found is not None:
        check_whole(found, scaled=config.precision == "fp16", best=config.patience is not None)
        logger.info("continuing from %s", found)
    return found


def _record(config: TrainConfig) -> Mapping[str, Any]:
    """What the run that is in the folder said when it began."""
    record = config.output / TRAINING_RECORD
    content = read_json(record, f"restore it, give another output, or {ANEW}") if os.path.lexists(record) else {}
    ours = isinstance(content, dict) and isinstance(content.get("config"), dict) and "data_fingerprint" in content
    if not ours:
        raise InputError(f"{config.output} holds a model, but no record of a `pumer train` run; give another output")
    found: Mapping[str, Any] = content
    return found
