"""Callbacks of `Trainer`: the epoch of the examples, and progress on the terminal."""

import time
from typing import Any

from rich.progress import Progress
from transformers import TrainerCallback, TrainerState, TrainingArguments

from pumer.tasks.loading import Examples


class SetEpoch(TrainerCallback):
    """Sets the epoch of the training examples before they are read, also after a run was interrupted."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Called by `Trainer`."""
        self.examples.epoch = int(state.epoch or 0)


class ShowProgress(TrainerCallback):
    """A progress bar with loss, accuracy, samples per second and time left, and a line per evaluation, on stderr.

    Where stderr is no terminal, a line every `log_steps` steps takes the place of the bar, which its maker starts.
    """

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.loss = self.accuracy = ""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Show the bar."""
        self.samples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.began, self.first = time.perf_counter(), state.global_step
        if state.is_world_process_zero:
            self.shown = self.bar.add_task("train", total=state.max_steps, completed=state.global_step, note="")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if state.is_world_process_zero:
            note = f"{self._rate(state):.0f} samples/s{self.loss}{self.accuracy}"
            self.bar.update(self.shown, completed=state.global_step, note=note)

    def on_log(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Keep the loss for the bar, and print it where there is no bar."""
        if "loss" in kwargs["logs"]:
            self.loss = f", loss {kwargs['logs']['loss']:.4g}"
            if state.is_world_process_zero and not self.bar.console.is_terminal:
                self._print(state, f"{self._rate(state):.0f} samples/s{self.loss}")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Print the accuracy, and keep it for the bar."""
        if state.is_world_process_zero:
            accuracy, loss = kwargs["metrics"]["eval_accuracy"], kwargs["metrics"]["eval_loss"]
            self.accuracy = f", accuracy {100 * accuracy:.1f}%"
            self._print(state, f"accuracy {100 * accuracy:.1f}%, loss {loss:.4g}")

    def _print(self, state: TrainerState, line: str) -> None:
        text = f"step {state.global_step} of {state.max_steps}: {line}"
        self.bar.console.print(text, highlight=False, soft_wrap=True)

    def _rate(self, state: TrainerState) -> float:
        """Samples per second since the training began."""
        return (state.global_step - self.first) * self.samples / (time.perf_counter() - self.began)
