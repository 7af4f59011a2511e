"""transformers' `Trainer` with a task's own loss and score, a teacher, and checkpoints that load as patched."""

import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer

from pumer.checkpoint import write_reduction
from pumer.evaluation.scoring import sources_of
from pumer.reducers.learned import take_losses
from pumer.settings.train import DistillationConfig, OptimizerConfig
from pumer.tasks import Task
from pumer.tokens import Tokens
from pumer.training.callbacks import SetEpoch
from pumer.training.checkpoints import (
    ANEW,
    STATE_FILE,
    check_weights,
    checkpoint_folder,
    put,
    refused,
    rotate,
    way_out,
)
from pumer.training.distill import distillation_loss
from pumer.training.hidden import final_tokens, hidden_divergence
from pumer.training.optimizer import parameter_groups
from pumer.training.order import EpochOrder
from pumer.training.stopping import where_to_go_on, write_errors_stop
from pumer.training.teacher import NOT_FINITE, Teacher
from pumer.training.teacher_cache import RememberedTeacher
from pumer.utils.errors import InputError
from pumer.utils.tensors import not_finite
from pumer.utils.text import some

_ASIDE = ".saving"


class DistillingTrainer(Trainer):
    """Trains on batches of a `Collator`: the loss and the score come from the task, never from the model's head.

    With a teacher, the loss is `distillation_loss`, and on request `hidden_divergence`. The teacher stays outside the
    model: it is neither saved nor wrapped, and sees the same batch in eval mode without autograd.
    """

    def __init__(
        self,
        *args: Any,
        task: Task,
        processor: Any = None,
        teacher: Teacher | RememberedTeacher | None = None,
        distillation: DistillationConfig | None = None,
        optimizer: OptimizerConfig | None = None,
        keep: int = 1,
        **kwargs: Any,
    ) -> None:
        """Set up as transformers' `Trainer`, which the other arguments go to.

        Args:
            *args: for `Trainer`.
            task: loss and score, bound to the model's labels.
            processor: the model's, saved with every checkpoint.
            teacher: whom to imitate.
            distillation: weights of the loss, where there is a teacher.
            optimizer: learning rates of the parts.
            keep: checkpoints to keep beside the best one.
            **kwargs: for `Trainer`.
        """
        super().__init__(*args, **kwargs)
        torch.manual_seed(self.args.seed + self.args.process_index)  # processes do not drop the same units
        if self.is_fsdp_enabled:
            self.model._no_split_modules = layer_classes(self.model)  # what is sharded as one
        self.task = task
        self.processor = processor
        self.teacher = teacher.to(self.args.device) if teacher is not None else None
        self.distillation = distillation or DistillationConfig()
        self.rates = optimizer or OptimizerConfig()
        self.compute_metrics = self._score
        self.model_accepts_loss_kwargs = False  # losses are batch means; accumulated ones are averaged
        self.scores: list[float] = []
        self.sources: list[str] = []
        self.input_seconds = 0.0
        self._scored_step = -1
        self._taught: Tensor | None = None
        self.keep = keep
        self._aside: Path | None = None
        self.add_callback(SetEpoch(self.train_dataset))

    @property
    def examples_per_step(self) -> int:
        """Examples that a step learns from, those of all processes together."""
        arguments = self.args
        return int(arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size)

    @property
    def summed_loss(self) -> float:
        """Of the steps of this call; transformers' own mean is over other steps in some versions."""
        return float(self._total_loss_scalar)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that the arguments name, with a group per learning rate and weight decay."""
        if self.optimizer is None:  # type: ignore[has-type]
            trained = self.model if model is None else model
            kind = self.accelerator.unwrap_model(self.model).config.model_type
            decayed = set(self.get_decay_parameter_names(trained))
            groups = parameter_groups(trained, kind, self.task.head, decayed, self.rates)
            cls, settings = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer = cls(groups, **settings)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule of `Trainer`; a run in which warm-up would take every step has none."""
        if self.args.get_warmup_steps(num_training_steps) >= num_training_steps:
            self.args.warmup_steps = 0
        return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The task's loss, with a teacher the distillation loss; on request the logits (B, A) as well."""
        take_losses(model)  # what a forward outside this training may have left
        if self.teacher is None or not model.training:
            logits = self.task.logits(model, inputs)
            loss = self.task.loss(logits, inputs)
        else:
            logits, loss = self._imitate(model, self.teacher, inputs)
        owed = take_losses(model) if model.training else None
        loss = loss if owed is None else loss + owed
        return (loss, logits) if return_outputs else loss

    def _imitate(
        self, model: nn.Module, teacher: Teacher | RememberedTeacher, inputs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Logits and the loss beside a teacher."""
        with self.accelerator.autocast():
            taught = teacher(inputs)
        self._taught = taught.logits
        watch: AbstractContextManager[list[Tokens]] = nullcontext([])
        if taught.tokens is not None:
            watch = final_tokens(self.accelerator.unwrap_model(model))
        with watch as seen:
            logits = self.task.logits(model, inputs)
        loss = distillation_loss(self.task.loss(logits, inputs), logits, taught.logits, self.distillation)
        if taught.tokens:
            pairs = zip(seen, taught.tokens, strict=True)
            differences = [hidden_divergence(own, other) for own, other in pairs]
            loss = loss + self.distillation.hidden_weight * torch.stack(differences).mean()
        return logits, loss

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The next step's batches; how long they were waited for is added to `input_seconds`."""
        started = time.perf_counter()
        samples = super().get_batch_samples(*args, **kwargs)
        self.input_seconds += time.perf_counter() - started
        return samples

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward; see `Trainer`.

        Raises:
            InputError: for a loss that is no finite number, before it reaches the weights.
        """
        loss: Tensor = super().training_step(*args, **kwargs)
        if torch.isfinite(loss):
            return loss
        if self._taught is not None and not self._taught.isfinite().all():
            raise InputError(NOT_FINITE)
        raise self._diverged(f"the loss is {loss.item()}", self.state.global_step + 1)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """As `Trainer`, which asks before every update; refuses gradients that are no finite numbers."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        finite = norm is None or bool(torch.isfinite(torch.as_tensor(norm)).all())  # DeepSpeed may not know it yet
        if not finite and not self.args.fp16:  # in float16, the scaler skips such updates
            raise self._diverged(f"the norm of the gradients is {float(norm)}", self.state.global_step + 1)
        return norm

    def check_weights(self) -> None:
        """Refuse weights that the last update spoiled: they are not worth saving.

        Raises:
            InputError: naming them.
        """
        if broken := not_finite(self.model.named_parameters()):
            raise self._diverged(f"the weights {some(broken)} are not finite", self.state.global_step)

    def _diverged(self, what: str, step: int) -> InputError:
        return InputError(
            f"{what} at step {step}; {where_to_go_on(Path(self.args.output_dir))}; lower optimizer.lr, or clip with "
            "optimizer.max_grad_norm=1"
        )

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, tuple[Tensor, Tensor], Tensor]:
        """The columns (B,) the model answers with and the losses (B,), beside the positions (B,) of the examples.

        One loss per example, for in a batch that was filled up for the last process, some must not count.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.inference_mode(), self.compute_loss_context_manager():
            logits = self.task.logits(model, inputs)
            rows = [
                {name: value[row : row + 1] for name, value in inputs.items() if name != "inputs"}
                for row in range(len(logits))
            ]
            losses = [self.task.loss(logits[row : row + 1], alone) for row, alone in enumerate(rows)]
        return None, (self.task.choose(logits), torch.stack(losses)), inputs["index"]

    def final_scores(self) -> tuple[list[float], list[str]]:
        """Scores of the evaluation examples by the model as it is now, evaluated anew where needed; their sources."""
        if self.args.load_best_model_at_end or self._scored_step != self.state.global_step:
            self.evaluate()
        return self.scores, self.sources

    def gathered_weights(self) -> dict[str, Tensor] | None:
        """The whole state dict where the weights are sharded, else None; every process must ask, the first is told."""
        return self.accelerator.get_state_dict(self.model) if self.is_fsdp_enabled else None

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: transformers' estimate knows nothing of reduced tokens."""
        return 0

    def _score(self, predicted: EvalPrediction) -> dict[str, float]:
        examples = self.eval_dataset.examples
        answered = [examples[index] for index in predicted.label_ids]
        columns, losses = predicted.predictions
        if not np.isfinite(losses).all():
            raise self._diverged(f"the loss of the evaluation is {losses.mean()}", self.state.global_step)
        answers = [self.task.labels[column] for column in columns]
        self.scores = self.task.scores(answered, answers).tolist()
        self.sources = sources_of(answered)
        self._scored_step = self.state.global_step
        return {"accuracy": sum(self.scores) / len(self.scores), "loss": float(losses.mean())}

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> EpochOrder:
        per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return EpochOrder(self.train_dataset, self.args.seed, per_step)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer`; the best checkpoint is the one in this folder, also where the folder was moved."""
        begun = super()._init_training_state(*args, **kwargs)
        output = Path(self.args.output_dir)
        if self.args.should_save:
            shutil.rmtree(output / _ASIDE, ignore_errors=True)  # of a run that was killed
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(checkpoint_folder(output, self.state.best_global_step))
        return begun

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        with refused(f"the model in {folder}", way_out(folder)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        check_weights(best)
        with refused(f"the best model so far, in {best},", ANEW):
            super()._load_best_model()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Called by `Trainer` after weights were read.

        Raises:
            InputError: for weights that are missing, left over or not finite.
        """
        broken = not_finite(self.model.named_parameters())
        if wrong := [*load_result.missing_keys, *load_result.unexpected_keys, *broken]:
            raise InputError(f"weights are missing, left over or not finite: {some(wrong)}")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with refused(f"optimizer.pt or scheduler.pt in {checkpoint}", way_out(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with refused(f"scaler.pt in {checkpoint}", way_out(checkpoint)):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with refused(f"rng_state.pth in {checkpoint}", way_out(checkpoint)):
            super()._load_rng_state(checkpoint)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As `Trainer`, but a run that was over when its last checkpoint was written is not trained further."""
        saved = self.state.stateful_callbacks.get("TrainerControl", {}).get("args", {})
        if saved.get("should_training_stop"):
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._aside is None else str(self._aside)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint aside, with `reduction.json` and the processor, then rename it: complete or not there.

        Raises:
            InputError: on a full disk, and for weights that are not finite; earlier checkpoints are intact.
        """
        self.check_weights()
        output, aside = Path(self.args.output_dir), Path(self.args.output_dir) / _ASIDE
        final = checkpoint_folder(output, self.state.global_step)
        if self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            with write_errors_stop(output):
                self._aside = aside
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.state.best_global_step == self.state.global_step:
                    self.state.best_model_checkpoint = str(final)
                if self.args.should_save:
                    self._complete(aside / final.name)
                    put(aside / final.name, final)
                    rotate(output, self.keep, self.state.best_model_checkpoint, aside)
        finally:
            self._aside = None
            if self.args.should_save:
                shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _complete(self, folder: Path) -> None:
        """Add to a checkpoint what `Trainer` does not write."""
        write_reduction(self.accelerator.unwrap_model(self.model, keep_torch_compile=False), folder)
        if self.processor is not None:
            self.processor.save_pretrained(folder)
        self.state.save_to_json(str(folder / STATE_FILE))


def layer_classes(model: nn.Module) -> list[str]:
    """Names of the classes of a model's layers: of all that stands in a list of modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return sorted({type(layer).__name__ for layers in lists for layer in layers})
