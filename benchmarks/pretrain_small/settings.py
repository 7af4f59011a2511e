"""Settings of `python -m benchmarks pretrain`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pumer.utils.arguments import in_range, writable_folders
from pumer.utils.errors import InputError
from pumer.utils.limits import check_checkpoint


@dataclass(frozen=True)
class PretrainConfig:
    """How to pre-train.

    Args:
        model: "vilt" or "meter".
        out: folder of the run's state and of the finished checkpoint.
        minutes: length of the run, in minutes of training; a resumed run goes on where it was.
        workers: processes that train, each on one CPU thread.
        batch_size: samples per step of a worker, two per scene.
        lr: peak learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        seed: seed of weights and scenes (their split is "pretrain", no other uses it).
        layers: transformer layers of the finished ViLT.
        places: where the layers of the shallower first ViLT stand in it; the paper's reductions happen in layers 2, 5
            and 8, which are therefore among the longest trained.
        grow_at: fraction of the run after which ViLT gets its full depth.
        pairs: pairs of cross-modal layers of METER.
        vilt: folder of the ViLT whose first layers METER's vision encoder starts with; the one that ships by default.
        full_at: fraction of the run after which it sees whole pictures.
        fall_at: fraction of the run after which the learning rate falls.
        reduce_at: fraction of the run after which every other batch has its tokens reduced.
        ground_at: fraction of the run after which words are told which patches to attend to in the layers that reduce:
            those that the sentence is about.
        patches: patches per picture before that.
        tasks: fraction of the sentences that are those of the data sets other than questions.
        start: folder of a finished checkpoint to go on from, at full depth; words it does not know start afresh.
        save_minutes: minutes between two saved states.
        compile: speed the forward pass up with torch.compile.
    """

    model: Literal["vilt", "meter"] = "vilt"
    out: str = "runs/world-pretrain"
    minutes: float = 60.0
    workers: int = 2
    batch_size: int = 32
    lr: float = 8e-4
    weight_decay: float = 0.02
    seed: int = 1
    layers: int = 12
    places: tuple[int, ...] = (0, 2, 5, 6, 8, 10)
    grow_at: float = 0.6
    pairs: int = 6
    vilt: str | None = None
    full_at: float = 0.6
    fall_at: float = 0.45
    reduce_at: float = 0.67
    ground_at: float = 0.67
    patches: int = 96
    tasks: float = 0.4
    start: str | None = None
    save_minutes: float = 2.0
    compile: bool = True

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        in_range(self)
        if self.workers < 1:
            raise InputError(f"workers train, so there must be at least 1, not {self.workers}")

    @property
    def written(self) -> tuple[Path, ...]:
        """What is written."""
        return (Path(self.out),)

    def check_places(self) -> None:
        """Refuse folders that are not there, or could not be written."""
        for checkpoint in (self.vilt, self.start):
            if checkpoint is not None:
                check_checkpoint(Path(checkpoint))
        writable_folders(*self.written)
