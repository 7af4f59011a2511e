"""Pre-training of the small ViLT in the built-in world: `pumer world pretrain`.

The schedule follows the clock, so that it fits the machine: a model of half the depth first, which sees objects and
little background; then the full depth, each new layer starting as one that adds nothing; then whole pictures. It is
killed and resumed at will: the run's folder holds its state, saved every few minutes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from math import cos, pi
from pathlib import Path

import torch
from rich.console import Console
from torch.utils.data import DataLoader

from pumer.world.pool import Batch, Source, Stream
from pumer.world.sentences import KINDS
from pumer.world.small import checkpoint_dir, small_vilt
from pumer.world.tokenizer import train_tokenizer
from pumer.world.trainee import Trainee, choose_patches, losses

_WEIGHTS = {"dense": 0.5, "role": 2.0, "answer": 1.0, "binary": 0.2, "match": 0.5, "words": 0.3}


@dataclass(frozen=True)
class PretrainConfig:
    """How to pre-train.

    Args:
        out: folder of the run's state and of the finished checkpoint.
        minutes: length of the run, in minutes of training; a resumed run goes on where it was.
        batch_size: samples per step, two per scene.
        lr: peak learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        seed: seed of weights and scenes (their split is "pretrain", no other uses it).
        layers: transformer layers of the finished model, even.
        grow_at: fraction of the run after which the model gets its full depth.
        full_at: fraction of the run after which it sees whole pictures.
        patches: patches per picture before that.
        save_minutes: minutes between two saved states.
        compile: speed the forward pass up with torch.compile.
        threads: CPU threads.
    """

    out: str = "runs/world-pretrain"
    minutes: float = 60.0
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.02
    seed: int = 1
    layers: int = 12
    grow_at: float = 0.45
    full_at: float = 0.8
    patches: int = 56
    save_minutes: float = 3.0
    compile: bool = True
    threads: int = 2


@dataclass
class Run:
    """The state of a run: what is saved is what a resumed run starts from."""

    config: PretrainConfig
    trainee: Trainee
    step: int = 0
    seconds: float = 0.0
    grown: bool = False
    grown_step: int = 0
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        """Make the optimizer for the trainee's present parameters."""
        decay = [p for p in self.trainee.parameters() if p.dim() > 1]
        rest = [p for p in self.trainee.parameters() if p.dim() <= 1]
        groups = [{"params": decay, "weight_decay": self.config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=self.config.lr, betas=(0.9, 0.98))

    @property
    def progress(self) -> float:
        """Fraction of the run that is over."""
        return self.seconds / (60 * self.config.minutes)

    def rate(self) -> float:
        """Learning rate: warm-up at the start and after growing, constant, then a cosine down from 55%."""
        warm = min(1.0, (self.step + 1) / 300, (self.step - self.grown_step + 1) / 100)
        fall = min(1.0, max(0.0, (self.progress - 0.55) / 0.45))
        return self.config.lr * warm * (0.02 + 0.98 * (1 + cos(pi * fall)) / 2)

    def grow(self) -> None:
        """Double the depth."""
        self.trainee, self.grown, self.grown_step = self.trainee.grown(), True, self.step
        self.__post_init__()

    def save(self, path: Path) -> None:
        """Write the state aside, then rename."""
        path.parent.mkdir(parents=True, exist_ok=True)
        numbers = {name: getattr(self, name) for name in ("step", "seconds", "grown", "grown_step")}
        state = {"numbers": numbers, "trainee": self.trainee.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)

    @classmethod
    def start(cls, config: PretrainConfig, path: Path) -> Run:
        """A fresh run, or the one saved at `path`."""
        torch.manual_seed(config.seed)
        trainee = Trainee(small_vilt(config.layers // 2))
        if not path.exists():
            return cls(config, trainee)
        state = torch.load(path, weights_only=True)
        if state["numbers"]["grown"]:
            trainee = Trainee(small_vilt(config.layers))
        trainee.load_state_dict(state["trainee"])
        run = cls(config, trainee, **state["numbers"])
        run.optimizer.load_state_dict(state["optimizer"])
        return run


def run(config: PretrainConfig) -> Path:
    """Pre-train, or go on with a run that was interrupted, and write the checkpoint.

    Returns:
        The folder of the checkpoint.
    """
    torch.set_num_threads(config.threads)
    console, state = Console(), Path(config.out) / "state.pt"
    this = Run.start(config, state)
    source = Source(train_tokenizer(), seed=config.seed)
    stream = DataLoader(Stream(source, config.batch_size, this.step), batch_size=None, num_workers=1, prefetch_factor=4)
    batches, saved, told, average = iter(stream), this.seconds, this.seconds, {}
    forward = torch.compile(this.trainee, dynamic=False) if config.compile else this.trainee
    console.print(f"pretrain: step {this.step}, {this.seconds / 60:.1f} of {config.minutes} min, grown {this.grown}")
    first = this.step
    while this.progress < 1:
        begin = time.monotonic()
        if not this.grown and this.progress >= config.grow_at:
            this.grow()
            forward = torch.compile(this.trainee, dynamic=False) if config.compile else this.trainee
        parts = _step(this, forward, next(batches))
        average = {k: 0.98 * average.get(k, v) + 0.02 * v for k, v in parts.items()}
        # A long pause (a stopped process, compiling) is not training time.
        this.seconds += min(time.monotonic() - begin, 2.0)
        this.step += 1
        if this.seconds - told >= 60:
            rate = (this.step - first) * config.batch_size / (this.seconds - told)
            told, first = this.seconds, this.step
            _report(console, this, average, rate)
        if this.seconds - saved >= 60 * config.save_minutes:
            saved = this.seconds
            this.save(state)
    this.save(state)
    return export(this.trainee, Path(config.out) / "vilt-small")


def _step(this: Run, forward: torch.nn.Module, batch: Batch) -> dict[str, float]:
    keep = None
    if this.progress < this.config.full_at:
        keep = choose_patches(batch, this.config.patches, torch.Generator().manual_seed(this.step))
    parts = losses(forward(batch, keep), batch, keep)
    torch.stack([weight * parts[name] for name, weight in _WEIGHTS.items()]).sum().backward()
    torch.nn.utils.clip_grad_norm_(this.trainee.parameters(), 1.0)
    for group in this.optimizer.param_groups:
        group["lr"] = this.rate()
    this.optimizer.step()
    this.optimizer.zero_grad()
    return {name: value.item() for name, value in parts.items()}


def _report(console: Console, this: Run, average: dict[str, float], rate: float) -> None:
    source = Source(train_tokenizer(), seed=this.config.seed + 1, captions=0.0)
    scores = accuracy(this.trainee, source, 512)
    told = " ".join(f"{name} {value:.3f}" for name, value in average.items())
    table = " ".join(f"{name} {value:.1%}" for name, value in scores.items())
    console.print(f"{this.seconds / 60:.1f} min, step {this.step}, {rate:.0f}/s: {told}\n    {table}", soft_wrap=True)


@torch.inference_mode()
def accuracy(trainee: Trainee, source: Source, count: int, start: int = 0) -> dict[str, float]:
    """Fraction of right answers to `count` questions of `source`, in all and by kind."""
    right, kinds = [], []
    for first in range(start, start + count // source.texts, 32):
        batch = source.batch(first, 32)
        right.append(trainee(batch)["answers"].argmax(1) == batch.answers)
        kinds.append(batch.kinds)
    hits, groups = torch.cat(right).float(), torch.cat(kinds)
    scores = {"all": hits.mean().item()}
    return scores | {kind: hits[groups == number].mean().item() for number, kind in enumerate(KINDS)}


def export(trainee: Trainee, folder: Path | None = None) -> Path:
    """Write the question answering model alone, in bfloat16, with its processor.

    Args:
        trainee: the pre-trained model.
        folder: where to; the package's own checkpoint if not given.
    """
    from transformers import AutoTokenizer, ViltProcessor

    from pumer.world.small import small_image_processor
    from pumer.world.tokenizer import save_tokenizer

    folder = folder or checkpoint_dir()
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(folder)
    trainee.model.save_pretrained(folder)
    small_image_processor().save_pretrained(folder)
    return folder
