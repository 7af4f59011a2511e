"""Settings of `python -m benchmarks pretrain` and `python -m benchmarks llava`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pumer.settings.common import (
    BatchSize,
    Fraction,
    Job,
    Model,
    NewFolder,
    NotNegative,
    Positive,
    Seconds,
    Seed,
    Threads,
)
from pumer.utils.config import config
from pumer.utils.limits import check_checkpoint

Layers = Annotated[int, Field(ge=1, le=1024)]


@config
class TrainingConfig(Job):
    """What the trainings of all small models share.

    Attributes:
        out: folder of the run's state and of the finished checkpoint.
        minutes: length of the run, in minutes of training; a resumed run goes on where it was.
        lr: peak learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        seed: seed of weights and scenes (their split is "pretrain", no other uses it).
        patches: patches per image in the first part of the run.
        full_at: fraction of the run after which it sees whole images.
        fall_at: fraction of the run after which the learning rate falls.
        save_minutes: minutes between two saved states.
    """

    out: NewFolder
    minutes: Annotated[float, Field(ge=0.001, le=10**6)] = 60.0
    lr: Positive = 1e-3
    weight_decay: NotNegative = 0.02
    seed: Seed = 1
    patches: Annotated[int, Field(ge=1, le=16_384)] = 64
    full_at: Fraction = 0.5
    fall_at: Fraction = 0.4
    save_minutes: Seconds = 2.0


@config
class PretrainConfig(TrainingConfig):
    """How to pre-train the small ViLT, or the small METER.

    Attributes:
        model: "vilt" or "meter".
        workers: processes that train, each on one CPU thread.
        batch_size: samples per step of a worker, two per scene.
        layers: transformer layers of the finished ViLT.
        places: where the layers of the shallower first ViLT stand in it; the paper's reductions happen in layers 2, 5
            and 8, which are therefore among the longest trained.
        grow_at: fraction of the run after which ViLT gets its full depth.
        pairs: pairs of cross-modal layers of METER.
        vilt: folder of the ViLT whose first layers METER's vision encoder starts with; the one that ships by default.
        reduce_at: fraction of the run after which every other batch has its tokens reduced.
        ground_at: fraction of the run after which words learn which patches to attend to in the layers that reduce:
            those that the sentence is about.
        tasks: fraction of the sentences that are those of the data sets other than questions.
        start: folder of a finished checkpoint to go on from, at full depth; words and answers it does not know start
            afresh.
        wide: in the world's wide layout, with its tokenizer.
        compile: speed the forward pass up with torch.compile.
    """

    model: Literal["vilt", "meter"] = "vilt"
    out: NewFolder = Path("runs/world-pretrain")
    workers: Threads = 2
    batch_size: BatchSize = 32
    lr: Positive = 8e-4
    layers: Layers = 12
    places: tuple[int, ...] = (0, 2, 5, 6, 8, 10)
    grow_at: Fraction = 0.6
    pairs: Layers = 6
    vilt: Model | None = None
    full_at: Fraction = 0.6
    fall_at: Fraction = 0.45
    reduce_at: Fraction = 0.67
    ground_at: Fraction = 0.67
    patches: Annotated[int, Field(ge=1, le=16_384)] = 96
    tasks: Fraction = 0.4
    start: Model | None = None
    wide: bool = False
    compile: bool = True

    def check_places(self) -> None:
        """Refuse folders that are not there, or could not be written."""
        for checkpoint in (self.vilt, self.start):
            if checkpoint is not None:
                check_checkpoint(Path(checkpoint))
        super().check_places()


@config
class LlavaTrainingConfig(TrainingConfig):
    """How to train the small LLaVA.

    Attributes:
        threads: CPU threads.
        batch_size: conversations per step.
        layers: layers of the decoder.
        width: of the decoder.
        half: compute in bfloat16, where it can be.
    """

    out: NewFolder = Path("runs/world-llava")
    threads: Threads = 1
    batch_size: BatchSize = 16
    layers: Layers = 8
    width: Annotated[int, Field(ge=32, le=4096, multiple_of=32)] = 128
    patches: Annotated[int, Field(ge=1, le=144)] = 64
    half: bool = False
