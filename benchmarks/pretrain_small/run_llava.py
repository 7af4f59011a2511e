"""Training of the small LLaVA that ships: `python -m benchmarks llava`.

Its vision encoder is that of the small METER, which knows what every patch shows, and stays as it is. Its decoder
starts afresh and learns to answer in words, by conversations of `TURNS` questions about one image. In the layers
`GROUNDED` the words are trained to look at the image tokens that their question is about, which is what a reducer asks
of them; heads that are not shipped are asked what an image token shows, and what is asked about. In the first part of
the run most of the background is left out. The run's folder holds its state, saved every few minutes: it may be killed
and started again at will.
"""

import time
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.pretrain_small.pool_llava import TURNS, Conversations, shown
from benchmarks.pretrain_small.settings import LlavaTrainingConfig
from benchmarks.pretrain_small.small_llava import export, small_llava, tokenizer
from benchmarks.pretrain_small.trainee_llava import WEIGHTS, Trainee, losses
from benchmarks.pretrain_small.training import follow, listed, optimizer_of, rate, save_state, saved_state, update
from pumer.utils.locks import only_one

WARM_UP = 200
"""Steps."""


@torch.inference_mode()
def accuracy(trainee: Trainee, source: Conversations, count: int) -> tuple[float, float]:
    """Fraction of `count` conversations' answers that are right to the last token: first questions, and later ones."""
    first: list[torch.Tensor] = []
    later: list[torch.Tensor] = []
    for start in range(0, count, 32):
        batch = source.batch(start, 32)
        logits = trainee(batch)["logits"]
        said = batch.labels >= 0
        wrong = (logits.argmax(2) != batch.labels) & said
        # A turn's answer starts where `turns` names it and the label is one.
        number = ((batch.turns >= 0) & said).long().cumsum(1) - 1
        for turn in range(TURNS):
            right = ~(wrong & (number == turn)).any(1)
            (first if turn == 0 else later).append(right.float())
    return torch.cat(first).mean().item(), torch.cat(later).mean().item()


def run(config: LlavaTrainingConfig) -> Path:
    """Train, or go on with a run that was interrupted, and write the checkpoint.

    Returns:
        The folder of the checkpoint.
    """
    config.check_places()
    with only_one(*config.written):
        return _trained(config)


def _trained(config: LlavaTrainingConfig) -> Path:
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    training = _Training(config)
    training.run()
    return export(training.trainee.model, folder / "llava-small")


class _Training:
    """A model and how far its training is: seconds, steps, and running averages of the parts of the loss."""

    def __init__(self, config: LlavaTrainingConfig) -> None:
        """At the beginning, or where the state in the run's folder is."""
        words = tokenizer()
        self.config, self.path, self.console = config, Path(config.out) / "state.pt", Console()
        self.trainee = Trainee(small_llava(words, config.layers, config.width))
        self.optimizer = optimizer_of(self.trainee, config)
        self.source, self.check = Conversations(words, config.seed), Conversations(words, config.seed + 1)
        self.seconds, self.steps = 0.0, 0
        self.average: dict[str, float] = {}
        if self.path.exists():
            with saved_state(self.path) as saved:
                self.trainee.load_state_dict(saved["trainee"])
                self.optimizer.load_state_dict(saved["optimizer"])
                self.seconds, self.steps = saved["seconds"], saved["step"]
        self.reported_seconds, self.reported_steps = self.seconds, self.steps

    def run(self) -> None:
        """Train until time is up; report every minute, save every few."""
        total, saved_at = 60 * self.config.minutes, self.seconds
        while self.seconds < total:
            begin = time.monotonic()
            self._step(self.seconds / total)
            self.seconds += min(time.monotonic() - begin, 5.0)  # a stopped process does not train
            if self.seconds - self.reported_seconds >= 60:
                self._report()
            if self.seconds - saved_at >= 60 * self.config.save_minutes or self.seconds >= total:
                state = {"trainee": self.trainee.state_dict(), "optimizer": self.optimizer.state_dict()}
                save_state(self.path, state | {"seconds": self.seconds, "step": self.steps})
                saved_at = self.seconds

    def _step(self, progress: float) -> None:
        config = self.config
        batch = self.source.batch(self.steps * config.batch_size, config.batch_size)
        keep = shown(batch, config.patches) if progress < config.full_at else None
        with torch.autocast("cpu", torch.bfloat16, enabled=config.half):
            out = self.trainee(batch, keep)
        parts = losses({name: each.float() for name, each in out.items()}, batch, keep)
        update(self.optimizer, parts, WEIGHTS, rate(config, self.steps, progress, WARM_UP))
        follow(self.average, parts, 0.02)
        self.steps += 1

    def _report(self) -> None:
        seconds, steps = self.seconds - self.reported_seconds, self.steps - self.reported_steps
        scores = " and ".join(f"{score:.1%}" for score in accuracy(self.trainee, self.check, 256))
        self.console.print(
            f"{self.seconds / 60:.0f} of {self.config.minutes:.0f} min, step {self.steps}, "
            f"{steps * self.config.batch_size * TURNS / seconds:.0f} answers/s: {listed(self.average)}; "
            f"first and later questions {scores}",
            soft_wrap=True,
        )
        self.reported_seconds, self.reported_steps = self.seconds, self.steps
