"""Values and groups of settings that several commands share: each is declared, limited and described once."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field

from pumer.utils.config import config, parts
from pumer.utils.errors import InputError, unknown
from pumer.utils.files import read_config
from pumer.utils.limits import check_checkpoint, checkpoint_files
from pumer.utils.places import check_input, check_new_files, check_new_folder
from pumer.utils.shipped import SMALL, located

TASKS = ("vqav2", "nlvr2", "snli_ve", "flickr30k", "coco")
"""The names in `pumer.tasks.TASKS`; the built-in world has a data set for each."""
RETRIEVAL = ("flickr30k", "coco")
"""Those of them that rank images and captions, and draw other ones to compare with in every epoch."""
SPLITS = {
    "vqav2": ("train", "val", "test", "test-dev", "train+vg"),
    "nlvr2": ("train", "val", "test", "val-balanced", "val-unbalanced", "test-balanced", "test-unbalanced"),
    "snli_ve": ("train", "val", "test"),
    **dict.fromkeys(RETRIEVAL, ("train", "val", "test", "restval")),
}
"""The splits of each task; of retrieval several may be joined by "+"."""
BACKBONES = ("vilt", "meter")
"""The names in `pumer.backbones.BACKBONES`."""
METHODS = (
    *("none", "pumer", "pumer-released", "tome", "dynamicvit", "evit", "cls"),
    *("attention-received", "l2norm", "random", "pooling"),
    *("fastv", "pyramiddrop", "sparsevlm", "dart", "illava", "interaction", "victor"),
    *("divprune", "cdpruner", "visionzip", "prumerge", "vispruner", "simignore", "evs"),
    *("random-prompt", "pooling-prompt"),
)
"""The names in `pumer.reducers.METHODS`."""
METHOD_SETTINGS = (
    *("method", "version", "max_image_tokens", "image_tokens", "before", "schedule", "proportional_attention"),
    *("layers", "prune_ratio", "merge_ratio", "text_merge_ratio", "similarity", "stack", "merge_count"),
    *("ratio_weight", "temperature", "keep", "seed", "recycle_ratio", "vision_layers", "vision_prune_ratio"),
    *("slope", "sensitivity", "midpoint", "registers", "contextual_ratio", "even_tokens", "neighbors"),
    *("important_ratio", "block"),
)
"""What any of these methods has for a setting."""
GENERATIVE_PRESETS = ("llava-0.1b", "llava-1.5-7b", "qwen2.5-vl-3b", "smolvlm-2.2b")
"""The names in `pumer.profiling.generative_presets`."""
PRESETS = ("vilt-b32", "vilt-b32-nlvr2", "meter-b16", "meter-b16-nlvr2", *GENERATIVE_PRESETS)
"""The names in `pumer.profiling.named_models.presets`."""
LARGEST_MAGNITUDE = 30
"""Magnitudes of RandAugment are fractions of this."""

Resize = Literal["square", "pad", "aspect"]
Blank = Literal["none", "image", "text"]
Rule = Literal["official", "published"]
"""When VQA accuracy normalises answers, see `pumer.tasks.metrics.vqa_accuracy`."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What NumPy takes; torch takes more."""
Processes = Annotated[int, Field(ge=0, le=1024)]
Threads = Annotated[int, Field(ge=1, le=1024)]
LARGEST_BATCH = 65_536
BatchSize = Annotated[int, Field(ge=1, le=LARGEST_BATCH)]
ImageSize = Annotated[int, Field(ge=1, le=16_384)]
TextLength = Annotated[int, Field(ge=2, le=65_536)]
DType = Literal["float32", "bfloat16", "float16"]
PromptTokens = Annotated[int, Field(ge=1, le=2**20)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Pairs = Annotated[int, Field(ge=1, le=10**6)]
Seconds = Annotated[float, Field(ge=0, le=10**6)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


def known_split(split: str, task: str | None = None) -> str:
    """Refuse a split that the task, or without a task every task, lacks."""
    names = tuple(dict.fromkeys(name for key, names in SPLITS.items() if task in (None, key) for name in names))
    joined = split.split("+") if task in (None, *RETRIEVAL) else [split]
    if split not in names and not all(name in names for name in joined):
        raise InputError(unknown("split", split, names) + (f" of task {task}" if task else ""))
    return split


def known_reduction(reduction: Any) -> Any:
    """Refuse a reduction by a method that does not exist, settings that no method has, ratios that are no fractions.

    The name of a ``reduction.json`` stands for its content.
    """
    if isinstance(reduction, str) and reduction.endswith(".json"):
        reduction = read_config(reduction, "give the reduction.json of a model, or method and settings")
    settings = reduction if isinstance(reduction, Mapping) else {"method": reduction}
    if "method" not in settings:
        raise InputError(f"{reduction} names no method; add one of {', '.join(METHODS)}, as in reduction.method=pumer")
    if settings["method"] not in METHODS:
        raise InputError(unknown("method", settings["method"], METHODS))
    for key, value in settings.items():
        if key not in METHOD_SETTINGS:
            raise InputError(unknown("setting", key, METHOD_SETTINGS))
        if str(key).endswith("_ratio") and value is not None and not (type(value) in (int, float) and 0 <= value < 1):
            raise InputError(f"{key} is {value!r}; give the fraction to remove, from 0 up to but not including 1")
    return reduction


def known_weights(model: str) -> str:
    """Refuse a preset."""
    if model.startswith("preset:"):
        raise InputError(
            f"{model} has random weights, and is for plan, benchmark and info; give a folder, a hub name, or one of "
            f"{', '.join(SMALL)}"
        )
    return model


def gallery_sizes(galleries: str) -> tuple[int, int]:
    """How many candidate sets of how many images "50x20" means."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", galleries)
    if found is None:
        raise InputError(f"galleries must be of the form 50x20 (50 sets of 20 images), not '{galleries}'")
    return int(found[1]), int(found[2])


def check_rule(rule: str | None, task: str | None) -> None:
    """Refuse a rule for another task than VQAv2."""
    if rule is not None and task not in (None, "vqav2"):
        raise InputError(f"rule={rule} is for task vqav2, not for task {task}; leave it out")


def _one_of(what: str, names: tuple[str, ...], prefix: str = "") -> AfterValidator:
    """A check that a text, if it starts with the prefix, goes on with one of the names."""

    def check(value: str) -> str:
        if value.startswith(prefix) and value.removeprefix(prefix) not in names:
            raise InputError(unknown(what, value.removeprefix(prefix), names))
        return value

    return AfterValidator(check)


Task = Annotated[str, _one_of("task", TASKS)]
Split = Annotated[str, AfterValidator(known_split)]
_Located = Annotated[str, AfterValidator(located)]
Model = Annotated[_Located, AfterValidator(known_weights)]
"""A folder, a hub name, or a model that ships with the package, such as "small:vilt"."""
ModelOrPreset = Annotated[_Located, _one_of("preset", PRESETS, prefix="preset:")]
Reduction = Annotated[dict[str, Any] | str, AfterValidator(known_reduction)]
Galleries = Annotated[str, AfterValidator(lambda galleries: gallery_sizes(galleries) and galleries)]
File = Annotated[Path, "a file that is read"]
Folder = Annotated[Path, "a folder that is read"]
NewFile = Annotated[Path, "a file that is written"]
NewFolder = Annotated[Path, "a folder that is written"]


@config
class AugmentConfig:
    """RandAugment (Cubuk et al., 2020) as ViLT and METER are fine-tuned with it: 2 operations of magnitude 9.

    Attributes:
        operations: applied to each image, one after the other.
        magnitude: of all of them, from 0 to 30.
    """

    operations: Annotated[int, Field(ge=1)] = 2
    magnitude: Annotated[float, Field(ge=0, le=LARGEST_MAGNITUDE)] = 9


@config
class Job:
    """The settings of a command; its paths are of the types `File`, `Folder`, `NewFile` and `NewFolder`."""

    @property
    def written(self) -> tuple[Path, ...]:
        """The files and folders that it writes."""
        return tuple(path for kind in (NewFile, NewFolder) for _, path in self.paths(kind))

    @property
    def read(self) -> list[Path]:
        """The files that it reads, which no result may replace."""
        return [path for _, path in self.paths(File)]

    def paths(self, kind: Any) -> list[tuple[str, Path]]:
        """Names and values of the settings of a type that are given."""
        return list(_paths(self, get_args(kind)[1], ""))

    def check_places(self) -> None:
        """Refuse files and folders that are missing or not writable."""
        for kind in (File, Folder):
            for name, path in self.paths(kind):
                check_input(name, path, folder=kind is Folder)
        check_new_files([path for _, path in self.paths(NewFile)], getattr(self, "force", False), self.read)
        for _, path in self.paths(NewFolder):
            check_new_folder(path)


def _paths(group: Any, mark: str, prefix: str) -> Iterator[tuple[str, Path]]:
    for field in fields(group):
        value, name = getattr(group, field.name), prefix + field.name
        if is_dataclass(value):
            yield from _paths(value, mark, f"{name}.")
        elif mark in parts(field.type):
            yield from ((name, path) for path in ([value] if isinstance(value, Path) else value or ()))


@config
class ModelJob(Job):
    """A command on a model.

    Attributes:
        model: folder, hub name, or one that ships, such as small:vilt (`pumer list models`).
        image_size: pixels along a side of the images, a multiple of the patch size; null for the model's own.
    """

    model: Model
    image_size: ImageSize | None = None

    @property
    def read(self) -> list[Path]:
        """The files that it reads, which no result may replace."""
        return [*super().read, *checkpoint_files(self.model)]

    def check_places(self) -> None:
        """Refuse files and folders that are missing or not writable."""
        check_checkpoint(self.model, self.image_size)
        super().check_places()


@config
class MeasuringJob(ModelJob):
    """A command that measures a model, which need not exist.

    Attributes:
        model: folder, hub name, one that ships, such as small:vilt, or, of full size with random weights and without
            a download, preset:vilt-b32, preset:vilt-b32-nlvr2, preset:meter-b16 or preset:meter-b16-nlvr2; that
            generate: preset:llava-0.1b, preset:llava-1.5-7b, preset:qwen2.5-vl-3b or preset:smolvlm-2.2b.
        text_length: words, special tokens counted; null for as many as the checkpoint was trained with, else 32 (or its
            positions, if fewer).
        text_tokens: of a model that generates, text tokens of a prompt; null for 64.
        image_tokens: of a model that generates, image tokens of a prompt; null for those of one image where a model has
            as many for each, as LLaVA has, else 576.
    """

    model: ModelOrPreset = "preset:vilt-b32"
    text_length: TextLength | None = None
    text_tokens: PromptTokens | None = None
    image_tokens: PromptTokens | None = None

    def check_kind(self, generative: bool) -> None:
        """Refuse settings for models of another kind."""
        prompt, whole = ("text_tokens", "image_tokens"), ("text_length", "image_size")
        kind = "generates" if generative else "does not generate"
        for name in whole if generative else prompt:
            if (value := getattr(self, name)) is not None:
                others = " and ".join(prompt if generative else whole)
                raise InputError(f"{name}={value} is not for a model that {kind}; give {others}, or leave it out")


@config
class ReadingJob(ModelJob):
    """A command that reads examples of a task; settings left at null are those of the model's own training.

    Attributes:
        task: vqav2, nlvr2, snli_ve, flickr30k or coco.
        text_length: texts are cut to this many tokens; by default to what the model can take.
        resize: "square" squeezes or stretches every image to a square, "pad" fills it up to one with grey, "aspect"
            keeps its shape (of ViLT).
    """

    task: Task | None = None
    text_length: TextLength | None = None
    resize: Resize | None = None


@config
class DataRoot:
    """Where the examples are.

    Attributes:
        root: data folder; by default the one the model was trained on.
    """

    root: Folder | None = None


@config
class SplitJob(ModelJob):
    """A command that runs a model on a split; settings left at null are those of the model's own training.

    Attributes:
        task: vqav2, nlvr2, snli_ve, flickr30k or coco.
        split: of the task's official files, such as train, val or test.
        limit: only so many examples, spread evenly over the split.
        batch_size: examples per forward pass.
        workers: processes that read images.
        galleries: for retrieval: "50x20" ranks within 50 sets of 20 images each, with their captions; null within one
            set of all.
        scores: for retrieval: folder that keeps the score of every pair, so that an interrupted run continues.
        prompt: what a model that generates is asked, as in prompt='"{question} In one word."', with {question} where
            the question goes; null for the question and a request for a short answer.
        max_new_tokens: of an answer of a model that generates; null for 16.
        max_pixels: that the vision encoder of a model that generates gets of an image; null for as many as its
            processor gives.
        force: replace result files that are there already.
    """

    task: Task | None = None
    data: DataRoot = DataRoot()
    split: Split
    limit: Count | None = None
    batch_size: BatchSize = 64
    workers: Processes = 0
    galleries: Galleries | None = None
    scores: NewFolder | None = None
    prompt: str | None = None
    max_new_tokens: Count | None = None
    max_pixels: Count | None = None
    force: bool = False

    def __post_init__(self) -> None:
        known_split(self.split, self.task)
