"""transformers' `Trainer` with a task's own loss and score, a teacher, and checkpoints that are always complete."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from pumer.evaluation.summary import sources_of
from pumer.reducers.learned import take_losses
from pumer.settings.train import TrainConfig
from pumer.tasks.loading import Collator, Examples
from pumer.tasks.session import Session
from pumer.training.callbacks import SetEpoch
from pumer.training.checkpoints import AtomicCheckpoints, check_weights, is_finished, refused, way_out
from pumer.training.distillation import distillation_loss, final_tokens, hidden_divergence
from pumer.training.optimizer import parameter_groups
from pumer.training.sampler import EpochSampler
from pumer.training.stopping import StopOnSignal, diverged
from pumer.training.teacher import NOT_FINITE, Batch, CachedTeacher, Teacher
from pumer.utils.errors import InputError, some
from pumer.utils.tensors import not_finite


class DistillingTrainer(Trainer):
    """Trains on batches of a `Collator`: the loss and the score come from the task, never from the model's head.

    With a teacher, the loss is `distillation_loss`, and on request `hidden_divergence`. The teacher stays outside the
    model: it is neither saved nor wrapped, and gets the same batch in eval mode without autograd.
    """

    def __init__(
        self,
        config: TrainConfig,
        session: Session,
        arguments: TrainingArguments,
        examples: Examples,
        held_out: Examples | None,
        collate: Collator,
        teacher: Teacher | CachedTeacher | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        """Prepare a training of the session's model; `callbacks` are called before those that save and stop.

        `held_out` is evaluated on; `teacher` is the model to imitate, or its cached answers.
        """
        super().__init__(
            session.model, arguments, collate, train_dataset=examples, eval_dataset=held_out, callbacks=list(callbacks)
        )
        torch.manual_seed(arguments.seed + arguments.process_index)  # processes do not drop the same units
        if self.is_fsdp_enabled:
            self.model._no_split_modules = layer_classes(self.model)  # FSDP shards each layer by itself
        if isinstance(teacher, Teacher):
            teacher.model.to(arguments.device)
        self.config, self.task, self.teacher = config, session.task, teacher
        self.compute_metrics = self._score
        self.model_accepts_loss_kwargs = False  # losses are batch means; accumulated ones are averaged
        self.checkpoints = AtomicCheckpoints(config.output, config.keep, session.processor)
        self.stop = StopOnSignal(config.output)
        self.callback_handler.callbacks.insert(0, self.checkpoints)  # a tracker that fails costs no checkpoint
        for callback in (SetEpoch(examples), self.stop):  # a signal stops after the step was saved
            self.add_callback(callback)
        self.remove_callback(PrinterCallback)
        self.examples_per_step = (
            arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        )
        self.scores: list[float] = []
        self.sources: list[str] = []
        self.input_seconds = 0.0
        self._finished = False
        self._scored_step = -1
        self._teacher_logits: Tensor | None = None

    def train(self, resume_from_checkpoint: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, see `Trainer`; a run that was over when its checkpoint was written takes no further step."""
        with self.stop.listening():
            if resume_from_checkpoint is None:
                return super().train(None, *args, **kwargs)
            checkpoint = Path(resume_from_checkpoint)
            check_weights(checkpoint, way_out(checkpoint), self.model)
            self._finished = is_finished(checkpoint)
            try:
                return super().train(resume_from_checkpoint, *args, **kwargs)
            except Exception:
                if self.callback_handler.lr_scheduler is not None:  # all was read: a fault of something else
                    raise
                with refused(f"optimizer.pt, scheduler.pt or scaler.pt in {checkpoint}", way_out(checkpoint)):
                    raise

    def set_initial_training_values(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The length of the training, see `Trainer`: no epoch where the run is over."""
        epochs, *rest = super().set_initial_training_values(*args, **kwargs)
        return (0 if self._finished else epochs, *rest)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of this process, in the order of `EpochSampler`."""
        loader = DataLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            sampler=EpochSampler(self.train_dataset, self.args.seed, self.examples_per_step),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that the arguments name, with a group per learning rate and weight decay."""
        if self.optimizer is None:  # type: ignore[has-type]
            trained = self.model if model is None else model
            kind = self.accelerator.unwrap_model(self.model).config.model_type
            decayed = set(self.get_decay_parameter_names(trained))
            groups = parameter_groups(trained, kind, self.task.head, decayed, self.config.optimizer)
            cls, settings = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer = cls(groups, **settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, *args: Any) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule of `Trainer`; a run in which warm-up would take every step has none."""
        if self.args.get_warmup_steps(num_training_steps) >= num_training_steps:
            self.args.warmup_steps = 0
        return super().create_scheduler(num_training_steps, *args)

    def compute_loss(self, model: nn.Module, inputs: Batch, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The task's loss, with a teacher the distillation loss; on request the logits (B, A) as well."""
        take_losses(model)  # auxiliary losses of a forward outside this training
        if self.teacher is None or not model.training:
            logits = self.task.logits(model, inputs)
            loss = self.task.loss(logits, inputs)
        else:
            logits, loss = self._distill(model, self.teacher, inputs)
        auxiliary_loss = take_losses(model) if model.training else None
        loss = loss if auxiliary_loss is None else loss + auxiliary_loss
        return (loss, logits) if return_outputs else loss

    def _distill(self, model: nn.Module, teacher: Teacher | CachedTeacher, inputs: Batch) -> tuple[Tensor, Tensor]:
        """Logits and the distillation loss."""
        with self.accelerator.autocast():
            target = teacher(inputs)
        self._teacher_logits, weights = target.logits, self.config.distillation
        if target.tokens is None:
            logits, tokens = self.task.logits(model, inputs), []
        else:
            with final_tokens(self.accelerator.unwrap_model(model)) as tokens:
                logits = self.task.logits(model, inputs)
        loss = distillation_loss(self.task.loss(logits, inputs), logits, target.logits, weights)
        if target.tokens:
            differences = [hidden_divergence(*pair) for pair in zip(tokens, target.tokens, strict=True)]
            loss = loss + weights.hidden_weight * torch.stack(differences).mean()
        return logits, loss

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The next step's batches; the time spent waiting for them is added to `input_seconds`."""
        started = time.perf_counter()
        samples = super().get_batch_samples(*args, **kwargs)
        self.input_seconds += time.perf_counter() - started
        return samples

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward; a loss or gradients that are not finite never reach the weights."""
        loss: Tensor = super().training_step(*args, **kwargs)
        step = self.state.global_step + 1
        if not torch.isfinite(loss):
            if self._teacher_logits is not None and not self._teacher_logits.isfinite().all():
                raise InputError(NOT_FINITE)
            raise diverged(f"the loss is {loss.item()}", step, self.config.output)
        if self.accelerator.sync_gradients and not self.args.fp16:  # in float16, the scaler skips such updates
            if self.is_deepspeed_enabled:  # the parameters hold none; DeepSpeed may not know the norm yet
                norm = float(self.accelerator.clip_grad_norm_([], float("inf")) or 0)
            else:
                norm = _gradient_norm(self.model)
            if not np.isfinite(norm):
                raise diverged(f"the norm of the gradients is {norm}", step, self.config.output)
        return loss

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Write the model, whose weights must be finite, as the first part of a checkpoint; see `Trainer`."""
        self.check_finite()
        super().save_model(*args, **kwargs)

    def check_finite(self) -> None:
        """Refuse weights that the last update made NaN or infinite."""
        if broken := not_finite(self.model.named_parameters()):
            raise diverged(f"the weights {some(broken)} are not finite", self.state.global_step, self.config.output)

    def prediction_step(
        self, model: nn.Module, inputs: Batch, *args: Any, **kwargs: Any
    ) -> tuple[None, tuple[Tensor, Tensor], Tensor]:
        """The columns (B,) the model answers with and the losses (B,), beside the positions (B,) of the examples.

        One loss per example, because in a batch that was filled up for the last process, some must not count.
        """
        inputs = self._prepare_inputs(inputs)
        targets = {name: value for name, value in inputs.items() if name != "inputs"}
        with torch.inference_mode(), self.compute_loss_context_manager():
            logits = self.task.logits(model, inputs)
            losses = [
                self.task.loss(logits[row], {name: value[row] for name, value in targets.items()})
                for row in (slice(number, number + 1) for number in range(len(logits)))
            ]
        return None, (self.task.choose(logits), torch.stack(losses)), inputs["index"]

    def final_scores(self) -> tuple[list[float], list[str]]:
        """Scores of the evaluation examples by the model as it is now, evaluated again where needed; their sources."""
        if self.args.load_best_model_at_end or self._scored_step != self.state.global_step:
            self.evaluate()
        return self.scores, self.sources

    def floating_point_ops(self, inputs: Batch) -> int:
        """Not counted: transformers' estimate knows nothing of reduced tokens."""
        return 0

    def _score(self, predicted: EvalPrediction) -> dict[str, float]:
        examples = self.eval_dataset.examples
        answered = [examples[index] for index in predicted.label_ids]
        columns, losses = predicted.predictions
        if not np.isfinite(losses).all():
            raise diverged(f"the loss of the evaluation is {losses.mean()}", self.state.global_step, self.config.output)
        answers = [self.task.labels[column] for column in columns]
        self.scores = self.task.scores(answered, answers).tolist()
        self.sources = sources_of(answered)
        self._scored_step = self.state.global_step
        return {"accuracy": sum(self.scores) / len(self.scores), "loss": float(losses.mean())}


def layer_classes(model: nn.Module) -> list[str]:
    """Names of the classes of a model's layers: of all that stands in a list of modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return sorted({type(layer).__name__ for layers in lists for layer in layers})


def _gradient_norm(model: nn.Module) -> float:
    """Norm of the gradients that the parameters hold."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
