"""Fine-tuning, with or without reduction, with or without the unreduced model as teacher."""

import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed

from pumer.checkpoint import TRAINING_RECORD, restore_learned, save, saved_files
from pumer.evaluation.statistics import bootstrap
from pumer.settings.train import OptimizerConfig, TrainConfig, TrainingData
from pumer.tasks import Example, Task, task_class
from pumer.tasks.fingerprint import data_fingerprint
from pumer.tasks.loading import Collator, Examples
from pumer.tasks.words import add_words, embed_words
from pumer.training import hub
from pumer.training.arguments import training_arguments
from pumer.training.callbacks import ShowProgress
from pumer.training.checkpoints import ANEW, INCOMPLETE, check_complete, checkpoints, last_checkpoint, step_of
from pumer.training.model_card import FILE as CARD
from pumer.training.model_card import model_card
from pumer.training.preflight import session_around, validate
from pumer.training.stopping import write_errors_stop
from pumer.training.teacher import CachedTeacher, Teacher, cached_teacher, load_teacher
from pumer.training.trainer import DistillingTrainer
from pumer.utils.config import to_dict
from pumer.utils.errors import InputError
from pumer.utils.files import read_json, write_json, write_text
from pumer.utils.locks import only_one
from pumer.utils.processes import is_main_process
from pumer.utils.progress import progress_bar
from pumer.utils.provenance import collect

__all__ = ["OptimizerConfig", "TrainConfig", "TrainingData", "run"]

logger = logging.getLogger(__name__)

_DTYPES = {"fp32": "float32", "bf16": "bfloat16 autocast", "fp16": "float16 autocast"}
_FREE_TO_CHANGE = {"resume", "workers", "log_steps", "keep", "report_to", "teacher_cache"}
_FREE_TO_CHANGE |= {"push_to_hub", "hub_model_id", "hub_private"}


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
    validate(config)
    with only_one(config.output):
        try:
            with write_errors_stop(config.output):  # inside: it looks whether the disk is still full
                return _run(config, progress_bar(enabled=progress))
        finally:
            if is_main_process():
                shutil.rmtree(config.output / INCOMPLETE, ignore_errors=True)


def _run(config: TrainConfig, bar: Progress) -> dict[str, Any]:
    """Train in a folder that no other process writes."""
    main, output, repository = is_main_process(), config.output, None
    if config.push_to_hub and main:
        repository = hub.create(config.hub_model_id or output.name, config.hub_private)
    checkpoint, former = _former_run(config)
    data = _read(config)
    if checkpoint is not None and former["data_fingerprint"] != data.fingerprint:
        raise InputError(f"{config.data.root} is not what the run in {output} began with; give a new output, or {ANEW}")
    trainer = _trainer(config, data, bar)
    record = {"model": str(output), "data_fingerprint": data.fingerprint}
    record |= collect(config, _DTYPES[config.precision])
    record["began"] = former.get("began", record["date"]) if checkpoint else record["date"]
    if main and checkpoint is None:
        for file in saved_files(output):  # of an earlier run, whose record is replaced
            file.unlink()
        write_json(output / TRAINING_RECORD, record)
    with bar:
        outcome = trainer.train(None if checkpoint is None else str(checkpoint))
    trainer.check_finite()
    steps, before = trainer.state.global_step, step_of(checkpoint) if checkpoint else 0
    seconds, trained = outcome.metrics["train_runtime"], steps - before
    result = {
        **record,
        "steps": steps,
        "resumed_from": before,
        "seconds": seconds,
        "input_seconds": round(trainer.input_seconds, 4),
        "samples_per_second": round(trained * trainer.examples_per_step / seconds, 3),
        # over the steps of this call; transformers' own mean is over other steps in some versions
        "loss": float(trainer._total_loss_scalar) / trained if trained else None,
        "history": [_without_nan(entry) for entry in trainer.state.log_history],
    }
    if config.data.eval is not None:
        scores, sources = trainer.final_scores()
        result |= {"questions": len(scores), "accuracy": bootstrap(scores, sources)}
    weights = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None  # of all processes
    if main:
        save(trainer.model, output, weights)
        trainer.checkpoints.processor.save_pretrained(output)
        write_json(output / TRAINING_RECORD, result)
        write_text(output / CARD, model_card(config, result))
    if repository is not None:
        hub.upload(repository, output)
    return result


@dataclass(frozen=True)
class _Data:
    """The examples of a training, their task and their fingerprint."""

    task: Task
    train: Sequence[Example]
    held_out: Sequence[Example] | None
    fingerprint: str


def _read(config: TrainConfig) -> _Data:
    data, task_type = config.data, task_class(config.task)
    task = task_type(task_type.vocabulary(data.root, data.min_answer_count))
    train = task.read(data.root, data.train, data.limit)
    held_out = task.read(data.root, data.eval, data.eval_limit) if data.eval else None
    splits = [split for split in (data.train, data.eval) if split is not None]
    return _Data(task, train, held_out, data_fingerprint(task_type, data.root, splits, [*train, *(held_out or [])]))


def _trainer(config: TrainConfig, data: _Data, bar: Progress) -> DistillingTrainer:
    """A trainer with its model, teacher and data."""
    set_seed(config.seed)
    session = session_around(data.task.model(config.model, data.task.labels), config, data.task)
    restore_learned(session.model, config.model)
    texts = [example.text for example in data.train] if config.data.add_words else []
    words = add_words(session.inputs.tokenizer, texts)
    embed_words(session.model, session.inputs.tokenizer, words)
    teacher: Teacher | CachedTeacher | None = load_teacher(config, session, words)
    arguments = training_arguments(config)
    examples = Examples(data.train, data.task, config.seed)
    held_out = None if data.held_out is None else Examples(data.held_out, data.task, training=False)
    collate = Collator(data.task, session.inputs, config.augment, config.seed)
    if config.teacher_cache is not False and isinstance(teacher, Teacher):
        teacher = cached_teacher(teacher, config, examples, collate, data.fingerprint, arguments.device, bar)
    callbacks: list[TrainerCallback] = [] if config.patience is None else [EarlyStoppingCallback(config.patience)]
    if not bar.disable:
        callbacks.append(ShowProgress(bar))
    return DistillingTrainer(config, session, arguments, examples, held_out, collate, teacher, callbacks)


def _former_run(config: TrainConfig) -> tuple[Path | None, Mapping[str, Any]]:
    """The checkpoint and the record to continue from; without them, a run begins anew, and old checkpoints go."""
    output, record = config.output, config.output / TRAINING_RECORD
    found, weights, recorded = last_checkpoint(output), saved_files(output), os.path.lexists(record)
    if not config.resume and (recorded or not weights):
        for folder in checkpoints(output) if is_main_process() else ():
            shutil.rmtree(folder)
        return None, {}
    if found is None and not weights:
        if recorded:
            logger.info("%s holds a run that ended before its first checkpoint; it begins again", output)
        return None, {}
    former = read_json(record, f"restore it, give another output, or {ANEW}") if recorded else {}
    if not (isinstance(former, dict) and isinstance(former.get("config"), dict) and "data_fingerprint" in former):
        raise InputError(f"{output} holds a model, but no record of a `pumer train` run; give another output")
    settings = {name: value for name, value in to_dict(config).items() if name not in _FREE_TO_CHANGE}
    if difference := _difference("", {name: former["config"].get(name) for name in settings}, settings):
        raise InputError(f"{output} holds a run with {difference}; give another output, or {ANEW}")
    if found is not None:
        check_complete(found, scaled=config.precision == "fp16", best=config.patience is not None)
        logger.info("continuing from %s", found)
    return found, former


def _difference(name: str, before: Any, now: Any) -> str | None:
    """The first setting that differs, with both values."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        inside = (_difference(f"{name}.{key}", before.get(key), now.get(key)) for key in {**now, **before})
        return next(filter(None, inside), None)
    return None if before == now else f"{name.removeprefix('.')}={before}, not {now}"


def _without_nan(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Logged values with null for NaN, which JSON lacks: norms of gradients that the scaler of float16 skipped."""
    return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in entry.items()}
