"""Pre-training of the small models in the built-in world: `python -m benchmarks pretrain`.

The schedule follows the clock, so that it fits the machine: first the model sees objects and little background, then
whole images. ViLT starts with half its depth and then gets the rest, each new layer starting as one that adds
nothing; METER starts with the vision encoder that ViLT's first layers are; either may go on from a finished checkpoint
instead (`start`). Last, every other batch has its tokens reduced on the way: the world's sentences have no word to
spare and its images few patches an object, so that a model should have seen two of them in one token before it is
asked to answer from such tokens. Throughout, the words of a phrase ("the dotted diamond") are trained to be similar
for a reducer that merges: what is merged across phrases can no longer be distinguished.

The workers train one set of weights in shared memory without waiting for each other (Hogwild), one CPU thread each: on
tensors this small that is twice as fast as threads that wait. The run's folder holds its state, saved every few
minutes: it may be killed and started again at will.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from rich.console import Console
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, ViltForQuestionAnswering, ViltProcessor

from benchmarks.pretrain_small.pool import TEXTS, Batch, Source
from benchmarks.pretrain_small.settings import PretrainConfig
from benchmarks.pretrain_small.small import meter_image_processor, small_image_processor, small_meter, small_vilt
from benchmarks.pretrain_small.tokenizer import save_tokenizer, train_tokenizer
from benchmarks.pretrain_small.trainee import Trainee, choose_patches, losses
from benchmarks.pretrain_small.trainee_meter import MeterTrainee
from benchmarks.pretrain_small.trainee_vilt import ViltTrainee
from benchmarks.pretrain_small.training import follow, listed, optimizer_of, rate, save_state, saved_state, update
from pumer.checkpoint import HEADS_FILE, read_model
from pumer.models.meter import MeterProcessor
from pumer.patching import unpatch
from pumer.reducers import EViTConfig, PuMerConfig, ReductionConfig, ToMeConfig
from pumer.utils.locks import only_one
from pumer.utils.shipped import SMALL
from pumer.world.scenes import NARROW, WIDE, SceneConfig
from pumer.world.sentences import KINDS, answers


def _pumer(layers: tuple[int, ...], prune: float, merge: float) -> PuMerConfig:
    return PuMerConfig(layers=layers, prune_ratio=prune, merge_ratio=merge, text_merge_ratio=0.2)


_REDUCTIONS: dict[str, list[ReductionConfig]] = {
    "vilt": [
        _pumer((2, 5, 8), 0.1, 0.3),
        ToMeConfig(layers=tuple(range(12)), merge_count=13),
        _pumer((2, 4, 6, 8), 0.1, 0.3),
        EViTConfig(layers=(2, 5, 8), prune_ratio=0.45),
    ],
    "meter": [
        _pumer((0, 2, 4, 6), 0.2, 0.2),
        _pumer((2, 4, 6), 0.2, 0.2),
        _pumer((2, 4, 6), 0.3, 0.5),
    ],
}
"""At work in turn in the last part of pre-training: PuMer's schedules; for ViLT, on which methods are compared, one
that only merges and one that prunes and fuses as well."""
_WEIGHTS = {
    "dense": 0.5,
    "role": 2.0,
    "answer": 1.0,
    "binary": 0.2,
    "match": 0.5,
    "words": 0.3,
    "place": 0.5,
    "label": 1.0,
    "pair": 1.0,
    "named": 2.0,
    "claim": 1.0,
    "ground": 0.3,
    "phrase": 0.5,
}
_WARM_UP = 300
"""Steps of each stage."""


def run(config: PretrainConfig) -> Path:
    """Pre-train, or go on with a run that was interrupted, and write the checkpoint.

    Returns:
        The folder of the checkpoint.
    """
    config.check_places()
    with only_one(*config.written):
        return _pretrained(config)


def _pretrained(config: PretrainConfig) -> Path:
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    clock = torch.zeros(2, dtype=torch.float64)
    trainee: Trainee | None = None
    for stage, until in enumerate((config.grow_at, 1.0) if config.model == "vilt" and not config.start else (1.0,)):
        trainee = _begin(config, stage, trainee)
        if _state(folder, stage).exists():
            _restore(_state(folder, stage), trainee, clock)
        if clock[0] < until * 60 * config.minutes:
            arguments = (config, trainee.share_memory(), clock.share_memory_(), stage, until)
            mp.spawn(_work, arguments, nprocs=config.workers)
    assert trainee is not None
    return export(trainee, folder / f"{config.model}-small", train_tokenizer(layout=_layout(config)))


def _begin(config: PretrainConfig, stage: int, before: Trainee | None) -> Trainee:
    """The model at the beginning of a stage."""
    tokenizer, named = train_tokenizer(layout=_layout(config)), answers(_layout(config))
    words = tokenizer.get_vocab_size()
    if config.model == "meter":
        meter = MeterTrainee(small_meter(config.pairs, named, words))
        if config.start:
            return _go_on(meter, Path(config.start), tokenizer)
        source = config.vilt or str(SMALL["small:vilt"])
        meter.borrow(read_model(ViltForQuestionAnswering, source, dtype=torch.float32)[0])
        return meter
    if isinstance(before, ViltTrainee):
        return before.grown(config.layers, config.places)
    if config.start:
        return _go_on(ViltTrainee(small_vilt(config.layers, named, words)), Path(config.start), tokenizer)
    return ViltTrainee(small_vilt(len(config.places), named, words))


def _go_on(trainee: Trainee, folder: Path, tokenizer: Tokenizer) -> Trainee:
    """Give a model the weights of a finished checkpoint: embeddings of words and rows of answers by their spelling."""
    before = read_model(type(trainee.model), folder, dtype=torch.float32)[0]
    theirs, own = before.state_dict(), trainee.model.state_dict()
    known = PreTrainedTokenizerFast.from_pretrained(folder).get_vocab()
    words = _shared(tokenizer.get_vocab(), known)
    labels = _shared(trainee.model.config.label2id, before.config.label2id)
    last = max(int(name.split(".")[1]) for name in own if name.startswith("classifier."))
    for name, value in own.items():
        if name.endswith("word_embeddings.weight"):
            value[words[0]] = theirs[name][words[1]]
        elif name.startswith(f"classifier.{last}."):
            value[labels[0]] = theirs[name][labels[1]]
        else:
            value.copy_(theirs[name])
    return trainee


def _shared(new: Mapping[str, int], old: Mapping[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices, in two vocabularies, of the entries that both have."""
    one, other = torch.tensor([(new[entry], index) for entry, index in old.items() if entry in new]).unbind(1)
    return one, other


def _state(folder: Path, stage: int, rank: int | None = None) -> Path:
    return folder / (f"stage{stage}.pt" if rank is None else f"stage{stage}-worker{rank}.pt")


def _work(rank: int, config: PretrainConfig, trainee: Trainee, clock: torch.Tensor, stage: int, until: float) -> None:
    """One worker's training: the weights and the clock (seconds, steps of all workers) are shared, the rest is not."""
    torch.set_num_threads(1)
    parent, total, folder = os.getppid(), 60 * config.minutes, Path(config.out)
    source = _source(config, config.seed, config.tasks)
    optimizer = optimizer_of(trainee, config)
    path, step = _state(folder, stage, rank), 0
    if path.exists():
        with saved_state(path) as saved:
            optimizer.load_state_dict(saved["optimizer"])
            step = saved["step"]
    watch = _Watch(config, trainee, clock, stage) if rank == 0 else None
    forward = torch.compile(trainee, dynamic=False) if config.compile else trainee
    saved_at = clock[0].item()
    while clock[0] < until * total and os.getppid() == parent:
        begin, progress = time.monotonic(), clock[0].item() / total
        scenes = config.batch_size // TEXTS
        batch = source.batch(((stage * 10_000_000 + step) * config.workers + rank) * scenes, scenes)
        parts = _losses(config, trainee, forward, batch, step, progress)
        update(optimizer, parts, _WEIGHTS, rate(config, step, progress, _WARM_UP))
        step += 1
        clock[1] += 1
        if watch is not None:
            # A long pause (a stopped process, compiling) is not training time.
            clock[0] += min(time.monotonic() - begin, 2.0)
            watch.see(parts)
        if clock[0] - saved_at >= 60 * config.save_minutes:
            saved_at = clock[0].item()
            save_state(path, {"optimizer": optimizer.state_dict(), "step": step})
            if watch is not None:
                save_state(_state(folder, stage), {"trainee": trainee.state_dict(), "clock": clock})
    if watch is not None and clock[0] >= until * total:
        save_state(_state(folder, stage), {"trainee": trainee.state_dict(), "clock": clock})


def _layout(config: PretrainConfig) -> SceneConfig:
    return WIDE if config.wide else NARROW


def _source(config: PretrainConfig, seed: int, tasks: float, captions: float = Source.captions) -> Source:
    tokenizer = train_tokenizer(layout=_layout(config))
    return Source(tokenizer, seed=seed, layout=_layout(config), captions=captions, tasks=tasks)


def _losses(
    config: PretrainConfig, trainee: Trainee, forward: Callable[..., Any], batch: Batch, step: int, progress: float
) -> dict[str, torch.Tensor]:
    """The losses of one batch, as far along as the run is."""
    if progress >= config.reduce_at and step % 2:
        keep = choose_patches(batch, config.patches) if progress < config.full_at else None
        reductions = _REDUCTIONS[config.model]
        return losses(trainee(batch, keep, reductions[step // 2 % len(reductions)]), batch, keep)
    shown = choose_patches(batch, config.patches) if progress < config.full_at else None
    parts = losses(forward(batch, shown), batch, shown)
    return parts if progress >= config.ground_at else {name: loss for name, loss in parts.items() if name != "ground"}


def _restore(path: Path, trainee: Trainee, clock: torch.Tensor) -> None:
    """Take up a saved state."""
    with saved_state(path) as saved:
        trainee.load_state_dict(saved["trainee"])
        clock.copy_(saved["clock"])


class _Watch:
    """Reports the progress every minute."""

    def __init__(self, config: PretrainConfig, trainee: Trainee, clock: torch.Tensor, stage: int) -> None:
        self.config, self.trainee, self.clock, self.stage = config, trainee, clock, stage
        self.console = Console()
        self.average: dict[str, float] = {}
        self.reported, self.seconds, self.steps = time.monotonic(), clock[0].item(), clock[1].item()
        self.source = _source(config, config.seed + 1, tasks=0.0, captions=0.0)

    def see(self, parts: dict[str, torch.Tensor]) -> None:
        follow(self.average, parts, 0.01)
        if time.monotonic() - self.reported < 60:
            return
        speed = (self.clock[1].item() - self.steps) * self.config.batch_size / (time.monotonic() - self.reported)
        scores = accuracy(self.trainee, self.source, 512)
        reduced = accuracy(self.trainee, self.source, 512, reduction=_REDUCTIONS[self.config.model][0])["all"]
        table = " ".join(f"{name} {value:.1%}" for name, value in scores.items()) + f", reduced {reduced:.1%}"
        self.console.print(
            f"{self.clock[0] / 60:.1f} of {self.config.minutes:.0f} min, stage {self.stage}, step {self.clock[1]:.0f}, "
            f"{speed:.0f} samples/s: {listed(self.average)}\n    {table}",
            soft_wrap=True,
        )
        self.reported, self.seconds, self.steps = time.monotonic(), self.clock[0].item(), self.clock[1].item()


@torch.inference_mode()
def accuracy(
    trainee: Trainee, source: Source, count: int, start: int = 0, reduction: ReductionConfig | None = None
) -> dict[str, float]:
    """Fraction of right answers to `count` questions of `source`, in all and by kind."""
    right, kinds = [], []
    for first in range(start, start + count // TEXTS, 32):
        batch = source.batch(first, 32)
        out = trainee(batch) if reduction is None else trainee(batch, None, reduction)
        right.append(out["answers"].argmax(1) == batch.answers)
        kinds.append(batch.kinds)
    hits, groups = torch.cat(right).float(), torch.cat(kinds)
    scores = {"all": hits.mean().item()}
    return scores | {kind: hits[groups == number].mean().item() for number, kind in enumerate(KINDS)}


def export(trainee: Trainee, folder: Path | None = None, tokenizer: Tokenizer | None = None) -> Path:
    """Write the question answering model with its processor, and the head that matches images and texts apart.

    Args:
        trainee: the pre-trained model.
        folder: where to; the package's own checkpoint if not given.
        tokenizer: that it was pre-trained with; the shipped models' if not given.
    """
    meter = isinstance(trainee, MeterTrainee)
    folder = folder or SMALL["small:meter" if meter else "small:vilt"]
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(folder, tokenizer)
    unpatch(trainee.model).save_pretrained(folder)
    matching = {f"itm_score.fc.{name}": value.contiguous() for name, value in trainee.match.state_dict().items()}
    save_file(matching, folder / HEADS_FILE)
    images = meter_image_processor() if meter else small_image_processor()
    images.save_pretrained(folder)
    loaded = PreTrainedTokenizerFast.from_pretrained(folder)
    (MeterProcessor if meter else ViltProcessor)(images, loaded).save_pretrained(folder)
    save_tokenizer(folder, tokenizer)
    return folder
