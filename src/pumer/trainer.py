"""transformers' `Trainer` with a task's own loss and score, a teacher, and checkpoints that load as patched."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from pumer.checkpoint import write_reduction
from pumer.distill import DistillationConfig, distillation_loss
from pumer.jobs import Examples
from pumer.tasks import Task

_STATE_FILE = "trainer_state.json"


class DistillingTrainer(Trainer):
    """Trains on batches of a `Collator`: the loss and the score come from the task, never from the model's head.

    With a teacher, the loss is `distillation_loss`. The teacher stays outside the model: it is neither saved nor
    wrapped, and sees the same batch in eval mode without autograd.
    """

    def __init__(
        self,
        *args: Any,
        task: Task,
        teacher: PreTrainedModel | None = None,
        distillation: DistillationConfig | None = None,
        head_factor: float = 1.0,
        **kwargs: Any,
    ) -> None:
        """Set up as transformers' `Trainer`, which the other arguments go to.

        Args:
            *args: for `Trainer`.
            task: loss and score, bound to the model's labels.
            teacher: patched, frozen, in eval mode.
            distillation: weights of the loss, where there is a teacher.
            head_factor: the task's head learns with this times the learning rate.
            **kwargs: for `Trainer`.
        """
        super().__init__(*args, **kwargs)
        self.task = task
        self.teacher = teacher.to(self.args.device) if teacher is not None else None
        self.distillation = distillation
        self.head_factor = head_factor
        self.compute_metrics = self._score
        self.model_accepts_loss_kwargs = False  # losses are batch means; accumulated ones are averaged
        self.scores: list[float] = []
        self._scored_step = -1
        self.add_callback(_Epochs(self.train_dataset))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with four groups: head or body, with or without weight decay."""
        if self.optimizer is None:  # type: ignore[has-type]
            trained = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(trained))
            groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
            for name, parameter in trained.named_parameters():
                if parameter.requires_grad:
                    key = (name.startswith(self.task.head), name in decayed)
                    groups.setdefault(key, []).append(parameter)
            lr = self.args.learning_rate
            self.optimizer = torch.optim.AdamW(
                [
                    {
                        "params": parameters,
                        "lr": lr * self.head_factor if is_head else lr,
                        "weight_decay": self.args.weight_decay if decays else 0.0,
                    }
                    for (is_head, decays), parameters in groups.items()
                ],
                lr=lr,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                fused=True,
            )
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
        logits = self.task.logits(model, inputs)
        loss = self.task.loss(logits, inputs)
        if self.teacher is not None and model.training:
            with torch.no_grad(), self.accelerator.autocast():
                imitated = self.task.logits(self.teacher, inputs)
            loss = distillation_loss(loss, logits, imitated, self.distillation)
        return (loss, logits) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The task's loss, the columns (B,) the model answers with, and the positions (B,) of the examples."""
        inputs = self._prepare_inputs(inputs)
        with torch.inference_mode(), self.compute_loss_context_manager():
            loss, logits = self.compute_loss(model, inputs, return_outputs=True)
        return loss, self.task.choose(logits), inputs["index"]

    def final_scores(self) -> list[float]:
        """Scores of the evaluation examples by the model as it is now, evaluated anew where needed."""
        if self.args.load_best_model_at_end or self._scored_step != self.state.global_step:
            self.evaluate()
        return self.scores

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: transformers' estimate knows nothing of reduced tokens."""
        return 0

    def _score(self, predicted: EvalPrediction) -> dict[str, float]:
        examples = self.eval_dataset.examples
        answered = [examples[index] for index in predicted.label_ids]
        answers = [self.task.labels[column] for column in predicted.predictions]
        self.scores = self.task.scores(answered, answers).tolist()
        self._scored_step = self.state.global_step
        return {"accuracy": sum(self.scores) / len(self.scores)}


class _Epochs(TrainerCallback):
    """Tells the training examples which epoch it is, before they are read: also after a run was interrupted."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.examples.epoch = int(state.epoch or 0)


class CompleteCheckpoints(TrainerCallback):
    """Adds `reduction.json` and the processor to every checkpoint, so that `pumer.load` reads it like any model."""

    def __init__(self, processor: Any) -> None:
        """Remember what to write.

        Args:
            processor: the model's processor.
        """
        self.processor = processor

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Complete the checkpoint that was just written."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            write_reduction(kwargs["model"], folder)
            self.processor.save_pretrained(folder)


class ShowProgress(TrainerCallback):
    """A progress bar with loss and samples per second, and a line per evaluation, on stderr."""

    def __init__(self, bar: Progress) -> None:
        """Show nothing before training begins.

        Args:
            bar: as made by `pumer.jobs.progress_bar`; whoever made it starts and stops it.
        """
        self.bar = bar
        self.loss = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the bar."""
        self.samples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.began, self.first = time.perf_counter(), state.global_step
        if state.is_world_process_zero:
            self.shown = self.bar.add_task("train", total=state.max_steps, completed=state.global_step, note="")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
        if state.is_world_process_zero:
            rate = (state.global_step - self.first) * self.samples / (time.perf_counter() - self.began)
            note = f"{rate:.0f} samples/s{self.loss}"
            self.bar.update(self.shown, completed=state.global_step, note=note)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember the loss."""
        if "loss" in kwargs["logs"]:
            self.loss = f", loss {kwargs['logs']['loss']:.4g}"

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Print the accuracy."""
        if state.is_world_process_zero:
            accuracy, loss = kwargs["metrics"]["eval_accuracy"], kwargs["metrics"]["eval_loss"]
            line = f"step {state.global_step} of {state.max_steps}: accuracy {100 * accuracy:.1f}%, loss {loss:.4g}"
            self.bar.console.print(line, highlight=False)


def last_checkpoint(output: Path) -> Path | None:
    """The newest checkpoint that was written to its end; one that a kill cut short is passed over."""
    steps = {int(path.name.rpartition("-")[2]): path for path in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*[0-9]")}
    for step in sorted(steps, reverse=True):
        try:
            json.loads((steps[step] / _STATE_FILE).read_text(encoding="utf-8"))  # Trainer writes it last
        except (OSError, ValueError):
            continue
        return steps[step]
    return None
