"""The settings of a training as transformers' `TrainingArguments`."""

import logging
from dataclasses import fields

import torch
from transformers import TrainingArguments

from pumer.settings.train import TrainConfig
from pumer.utils.tensors import best_device

logger = logging.getLogger(__name__)

_OPTIMIZERS = {"adamw": "adamw_torch_fused", "sgd": "sgd"}
_CHECKPOINTING = "activation_checkpointing"
"""Name of this argument; "gradient_checkpointing" in older versions."""


def training_arguments(config: TrainConfig) -> TrainingArguments:
    """The arguments of `Trainer`, for one device per process."""
    optimizer, moment = config.optimizer, "steps" if config.eval_steps else "epoch"
    known = {field.name for field in fields(TrainingArguments)}
    checkpointing = _CHECKPOINTING if _CHECKPOINTING in known else "gradient_checkpointing"
    arguments = TrainingArguments(
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
        logging_nan_inf_filter=False,  # a loss that is NaN stops the run
        report_to=list(config.report_to),
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=config.seed,
    )
    return use_one_device(arguments)


def use_one_device(arguments: TrainingArguments) -> TrainingArguments:
    """Train on one device per process: `Trainer` would spread a batch over all, without autocast or compile."""
    if arguments.n_gpu > 1:
        logger.warning(
            "one of %d GPUs is used; `torchrun --nproc-per-node %d -m pumer train ...` uses all",
            arguments.n_gpu,
            arguments.n_gpu,
        )
        arguments._n_gpu = 1
    return arguments
