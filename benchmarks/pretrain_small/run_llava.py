"""Training of the small LLaVA that ships: `python -m benchmarks llava`.

Its vision encoder is that of the small METER, which knows what every patch shows, and stays as it is. Its decoder
starts afresh and learns to answer in words, by conversations of `TURNS` questions about one image. In the layers
`GROUNDED` the words are trained to look at the image tokens that their question is about, which is what a reducer asks
of them; heads that are not shipped are asked what an image token shows, and what is asked about. In the first part of
the run most of the background is left out. The run's folder holds its state, saved every few minutes: it may be killed
and started again at will.
"""

import io
import time
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from benchmarks.pretrain_small.pool_llava import TURNS, Conversations, shown
from benchmarks.pretrain_small.settings import LlavaTrainingConfig
from benchmarks.pretrain_small.small_llava import export, small_llava, tokenizer
from benchmarks.pretrain_small.trainee_llava import WEIGHTS, Trainee, losses
from pumer.utils.files import write_bytes
from pumer.utils.locks import only_one


@torch.inference_mode()
def accuracy(trainee: Trainee, source: Conversations, count: int) -> tuple[float, float]:
    """Fraction of `count` conversations' answers that are right to the last token: first questions, and later ones."""
    first, later = [], []
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
    folder, console = Path(config.out), Console()
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    words = tokenizer()
    trainee = Trainee(small_llava(words, config.layers, config.width))
    optimizer = _optimizer(trainee, config)
    seconds, step, path = 0.0, 0, folder / "state.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        trainee.load_state_dict(saved["trainee"])
        optimizer.load_state_dict(saved["optimizer"])
        seconds, step = saved["seconds"], saved["step"]
    source, check = Conversations(words, config.seed), Conversations(words, config.seed + 1)
    total, saved_at, told_at, told_step = 60 * config.minutes, seconds, seconds, step
    average: dict[str, float] = {}
    while seconds < total:
        begin, progress = time.monotonic(), seconds / total
        batch = source.batch(step * config.batch_size, config.batch_size)
        keep = shown(batch, config.patches) if progress < config.full_at else None
        with torch.autocast("cpu", torch.bfloat16, enabled=config.half):
            out = trainee(batch, keep)
        parts = losses({name: each.float() for name, each in out.items()}, batch, keep)
        torch.stack([WEIGHTS[name] * loss for name, loss in parts.items()]).sum().backward()
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = _rate(config, step, progress)
        optimizer.step()
        optimizer.zero_grad()
        for name, loss in parts.items():
            average[name] = 0.98 * average.get(name, loss.item()) + 0.02 * loss.item()
        step += 1
        seconds += min(time.monotonic() - begin, 5.0)  # a stopped process does not train
        if seconds - told_at >= 60:
            rate = (step - told_step) * config.batch_size * TURNS / (seconds - told_at)
            scores = " and ".join(f"{score:.1%}" for score in accuracy(trainee, check, 256))
            shown_losses = ", ".join(f"{name} {value:.3f}" for name, value in average.items())
            console.print(
                f"{seconds / 60:.0f} of {config.minutes:.0f} min, step {step}, {rate:.0f} answers/s: {shown_losses}; "
                f"first and later questions {scores}",
                soft_wrap=True,
            )
            told_at, told_step = seconds, step
        if seconds - saved_at >= 60 * config.save_minutes or seconds >= total:
            state = {"trainee": trainee.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"seconds": seconds, "step": step}
            content = io.BytesIO()
            torch.save(state, content)
            write_bytes(path, content.getvalue())
            saved_at = seconds
    return export(trainee.model, folder / "llava-small")


def _optimizer(trainee: nn.Module, config: LlavaTrainingConfig) -> torch.optim.Optimizer:
    trained = [p for p in trainee.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if (p.dim() > 1) == decays], "weight_decay": config.weight_decay * decays}
        for decays in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), foreach=True)


def _rate(config: LlavaTrainingConfig, step: int, progress: float) -> float:
    """Learning rate: warm-up, constant, then a cosine down."""
    fall = min(1.0, max(0.0, (progress - config.fall_at) / (1 - config.fall_at)))
    return config.lr * min(1.0, (step + 1) / 200) * (0.02 + 0.98 * (1 + cos(pi * fall)) / 2)
