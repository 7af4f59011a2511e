import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn
from transformers import TrainerControl, TrainerState

from pumer.training.callbacks import ShowProgress


@pytest.mark.parametrize("terminal", [False, True])
def test_without_a_terminal_every_logged_loss_is_a_line(terminal):
    printed = io.StringIO()
    console = Console(file=printed, force_terminal=terminal, width=80)
    show = ShowProgress(Progress(TextColumn("{task.fields[note]}"), console=console))
    arguments = SimpleNamespace(train_batch_size=4, gradient_accumulation_steps=1, world_size=1)
    state = TrainerState(max_steps=20, is_world_process_zero=True)
    show.on_train_begin(arguments, state, TrainerControl())
    state.global_step = 10
    show.on_log(arguments, state, TrainerControl(), logs={"loss": 0.25})
    show.on_log(arguments, state, TrainerControl(), logs={"eval_accuracy": 0.5})
    lines = printed.getvalue().splitlines()
    assert len(lines) == (not terminal)
    if lines:
        assert lines[0].startswith("step 10 of 20: ")
        assert lines[0].endswith(" samples/s, loss 0.25")
