"""What a task is: one file that reads its data, renders it for the model and scores answers."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pumer.backbones import Head, models_for
from pumer.data.images import ImageLike
from pumer.data.pixels import Edit, Pixels
from pumer.data.storage import SKIPPED, missing_images, storage_of
from pumer.tasks.heads import classifier_from
from pumer.utils.errors import InputError
from pumer.utils.files import read_json, write_json

Entry = TypeVar("Entry")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Example:
    """One line of a data set.

    Attributes:
        id: the official id (VQAv2: `question_id`, NLVR2: `identifier`), unique in its split.
        images: image files; one, or two for tasks on image pairs. From Python also other images, see `read_image`.
        text: the question or sentence as written.
        answers: ground truth (VQAv2: ten answers as written, else one label); empty where the split has no public
            answers.
        groups: what scores are broken down by, for instance `{"question_type": "what color"}`.
        source: shared with other examples whose scores may be correlated, such as the number of the image; confidence
            intervals resample sources.
    """

    id: int | str
    images: tuple[ImageLike, ...]
    text: str
    answers: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    source: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """The images that are files: all of them, where official files were read."""
        return tuple(image for image in self.images if isinstance(image, Path))


@dataclass(frozen=True)
class Inputs:
    """How examples become tensors: everything `Task.collate` needs beside the examples.

    Attributes:
        tokenizer: tokenizer of the model.
        pixels: turns images into pixel tensors.
        text_length: questions are cut to this many tokens, [CLS] and [SEP] included.
        blank_text: replace every question by the empty one ([CLS][SEP]); for an image-only model.
        fixed_length: pad every text to `text_length`, not to the longest of its batch.
        edit: changes the resized images of a batch; see `Pixels.__call__`.
    """

    tokenizer: Any
    pixels: Pixels
    text_length: int
    blank_text: bool = False
    fixed_length: bool = False
    edit: Edit | None = None


def spread(entries: Sequence[Entry], limit: int | None) -> Sequence[Entry]:
    """At most `limit` entries, spread evenly, so that neighbours (questions about one image) are thinned out."""
    if limit is None or limit >= len(entries):
        return entries
    if limit < 1:
        raise InputError(f"limit must be at least 1 or null, not {limit}")
    return [entries[index * len(entries) // limit] for index in range(limit)]


def tokenize(texts: Sequence[str], inputs: Inputs) -> dict[str, Tensor]:
    """Texts as the tokenizer's tensors, such as `input_ids`: each (number of texts, T), T the longest, or fixed."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the text {text!r} holds half of a surrogate pair, which is no character") from error
    texts = ["" if inputs.blank_text else text for text in texts]
    padding = "max_length" if inputs.fixed_length else "longest"
    options = {"padding": padding, "truncation": True, "max_length": inputs.text_length, "return_tensors": "pt"}
    tokens = inputs.tokenizer(texts, **options)
    if any(each.overflowing for each in tokens.encodings or ()):
        _warn_of_cuts(inputs.text_length)
    return dict(tokens)


@cache
def _warn_of_cuts(length: int) -> None:
    """Log once that texts lose their ends."""
    logger.warning("texts are cut after %d tokens, and some have more; a larger text_length reads them whole", length)


def model_inputs(examples: Sequence[Example], inputs: Inputs) -> dict[str, Tensor]:
    """Texts (see `tokenize`) and images of B examples as keyword arguments of a model.

    `pixel_values` are (B, 3, height, width), of examples with two images (B, 2, 3, height, width); `pixel_mask`, where
    the model wants it, is the same without the 3.
    """
    count = len(examples[0].images)
    pixels = inputs.pixels([path for example in examples for path in example.images], inputs.edit)
    if count > 1:
        pixels = {name: tensor.unflatten(0, (len(examples), count)) for name, tensor in pixels.items()}
    return {**tokenize([example.text for example in examples], inputs), **pixels}


class Task(ABC):
    """A data set in its official files, with its loss and its official score.

    An instance is bound to `labels`, the meaning of the logits' columns. A batch is a dict of `inputs`
    (keyword arguments of the model), `targets` (B, ...) and whatever else `loss` needs.

    Attributes:
        name: key in `pumer.tasks.TASKS`.
        head_kind: which of `pumer.backbones.base.Head` answers it.
        head: prefixes of the parameter names that train with the head's learning rate.
        image_count: images of an example.
        fixed_labels: the labels in the order of the logits' columns, where they do not depend on the data.
        files: one line that names the files the data folder must hold, for error messages.
        splits: the splits that official files may hold.
        groups: names of `Example.groups`, in the order in which tables show them.
        template: the group whose best constant answers are the baseline; null for one constant answer to all.
        result_keys: what the official result file calls an example's id and its answer.
    """

    name: ClassVar[str]
    head_kind: ClassVar[Head]
    head: ClassVar[tuple[str, ...]] = ("classifier.",)
    image_count: ClassVar[int] = 1
    fixed_labels: ClassVar[tuple[str, ...]] = ()
    files: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    groups: ClassVar[tuple[str, ...]] = ()
    template: ClassVar[str | None] = None
    result_keys: ClassVar[tuple[str, str]]

    def __init__(self, labels: Sequence[str]) -> None:
        """Bind the task to the meaning of the logits' columns, one name per column, in order."""
        self.labels = tuple(labels)

    @classmethod
    def models(cls) -> dict[str, type[PreTrainedModel]]:
        """The model class for this task in each family that has one, by transformers' `model_type`."""
        return models_for(cls.head_kind)

    @classmethod
    def read(cls, root: Path, split: str, limit: int | None = None) -> list[Example]:
        """The examples of a split, in file order, from a download or from a folder made by `pumer data prepare`.

        Examples whose images a prepared folder had to skip are left out, with a warning that counts them.

        Args:
            root: data folder with the official files.
            split: "train", "val" or "test".
            limit: read only so many examples, spread evenly over the split.

        Raises:
            InputError: for a missing folder, file or image and for broken content; the message names it.
        """
        return cls.read_and_count(root, split, limit)[0]

    @classmethod
    def read_and_count(cls, root: Path, split: str, limit: int | None = None) -> tuple[list[Example], int]:
        """The examples of a split, as `read` gives them, and how many are left out because an image is missing."""
        examples = cls.examples(root, split, limit)
        if not examples:
            raise InputError(f"split {split} in {root} is empty")
        missing = missing_images(path for example in examples for path in example.files)
        if not missing:
            return examples, 0
        path, reason = next(iter(missing.items()))
        storage = storage_of(path)
        if storage is None and not path.parent.is_dir():
            raise InputError(f"image folder {path.parent} does not exist; the data folder must hold {cls.files}")
        if storage is None:
            gone = f"{len(missing)} images of split {split} are missing"
            raise InputError(f"image {path} does not exist; {gone}, `pumer data check {cls.name} {root}` lists them")
        kept = [example for example in examples if missing.keys().isdisjoint(example.images)]
        if not kept:
            raise InputError(f"no example of split {split} in {root} has its images; {path} {reason}")
        left_out = len(examples) - len(kept)
        logger.warning("%d of %d examples are left out: see %s", left_out, len(examples), storage.root / SKIPPED)
        return kept, left_out

    @classmethod
    @abstractmethod
    def examples(cls, root: Path, split: str, limit: int | None = None) -> list[Example]:
        """The examples in a split's annotation files, whether or not the images are there; see `read`."""

    @classmethod
    @abstractmethod
    def annotation_files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The files, images apart, that a split is read from, whether or not they are there."""

    @classmethod
    @abstractmethod
    def vocabulary(cls, root: Path, minimum: int) -> tuple[str, ...]:
        """The labels that the data defines.

        Args:
            root: data folder with the official files.
            minimum: leave out answers that occur less often; a task with fixed labels ignores it.
        """

    @classmethod
    def model(cls, checkpoint: str, labels: Sequence[str]) -> PreTrainedModel:
        """A model for this task, started from a checkpoint with or without a fitting head.

        Args:
            checkpoint: local directory or hub name.
            labels: meaning of the logits' columns. Columns of labels that the checkpoint's head knows keep
                their weights; the others are initialised at random.

        Raises:
            InputError: when the checkpoint cannot be read or is of another model type.
        """
        return classifier_from(checkpoint, labels, cls.models(), cls.image_count)

    def draw(self, examples: Sequence[Example], index: int, seed: int, epoch: int) -> Example:
        """An example for training; a task may add what it draws at random, from seed, epoch and index alone."""
        if not examples[index].answers:
            raise InputError(f"example {examples[index].id} has no public answer to train on; give another split")
        return examples[index]

    def collate(self, examples: Sequence[Example], inputs: Inputs) -> dict[str, Any]:
        """A batch (see the class) of B examples: `inputs` as `model_inputs` gives them, and `targets`."""
        return {"inputs": model_inputs(examples, inputs), "targets": self.targets(examples)}

    def targets(self, examples: Sequence[Example]) -> Tensor:
        """What `loss` compares the logits of B examples with, (B, ...); a task with its own `collate` needs none."""
        raise NotImplementedError

    def logits(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """The model's logits for a batch, (B, number of labels)."""
        logits: Tensor = model(**batch["inputs"]).logits
        return logits

    @abstractmethod
    def loss(self, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """The training loss, a scalar averaged over the batch.

        Args:
            logits: (B, number of labels), any floating dtype.
            batch: as made by `collate`.
        """

    @abstractmethod
    def score(self, example: Example, answer: str) -> float:
        """Official score of one answer, in [0, 1]; the task's metric is the mean over examples."""

    def candidates(self, example: Example) -> set[str]:
        """Answers that could be right for an example; the best constant answer is one of them."""
        return set(example.answers)

    @classmethod
    @abstractmethod
    def truth(cls, annotations: Path, questions: Path | None = None, split: str = "test") -> list[Example]:
        """Examples with their answers but without images, from annotation files wherever they lie: for scoring.

        Args:
            annotations: a file of the task's with the right answers.
            questions: a file with the questions that count, where the task has such files (VQAv2).
            split: the part of a file that holds all splits (retrieval).

        Raises:
            InputError: for a missing or broken file.
        """

    @classmethod
    def known(cls, annotations: Path) -> set[int | str]:
        """All ids in an annotation file, also those that `truth` leaves out: a result file may answer them."""
        return {example.id for example in cls.truth(annotations)}

    def write_submission(self, path: Path, examples: Sequence[Example], answers: Sequence[str]) -> None:
        """Write the official result file, one entry per example."""
        id_key, answer_key = self.result_keys
        pairs = zip(examples, answers, strict=True)
        write_json(path, [{id_key: example.id, answer_key: answer} for example, answer in pairs])

    @classmethod
    def read_submission(cls, path: Path) -> list[tuple[int | str, str]]:
        """Ids and answers of a file in the official result format, whoever made it."""
        id_key, answer_key = cls.result_keys
        entries = read_json(path)
        if not isinstance(entries, list):
            raise InputError(f'{path} must hold a list of {{"{id_key}": ..., "{answer_key}": ...}}')
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict) or not {id_key, answer_key} <= entry.keys():
                raise InputError(f"{path}: entry {index} must have '{id_key}' and '{answer_key}'")
            number, answer = entry[id_key], entry[answer_key]
            if not isinstance(answer, str):
                raise InputError(f"{path}: '{answer_key}' of entry {index} must be text, not {answer!r}")
            if not isinstance(number, int | str) or isinstance(number, bool):
                raise InputError(f"{path}: '{id_key}' of entry {index} must be a number or text, not {number!r}")
        return [(entry[id_key], entry[answer_key]) for entry in entries]

    def metrics(self, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, list[tuple[float, str]]]:
        """Official metrics beside the mean score, by name: values in [0, 1] whose mean is the metric, with sources."""
        return {}

    def choose(self, logits: Tensor) -> Tensor:
        """The column (B,) that each row of the logits (B, number of labels) answers with."""
        return logits.argmax(dim=-1)

    def scores(self, examples: Sequence[Example], answers: Sequence[str]) -> Tensor:
        """Official scores (number of examples,) in float64."""
        pairs = zip(examples, answers, strict=True)
        return torch.tensor([self.score(example, answer) for example, answer in pairs], dtype=torch.float64)
