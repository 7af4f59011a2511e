"""What a task is: one file that reads, collates and scores itself, so that data and metric agree."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pumer.data.images import Edit, ImageLike, Pixels
from pumer.data.storage import SKIPPED, missing_images, storage_of
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
        source: what it has in common with other examples, such as the number of its image: scores of one source may
            rise and fall together, which intervals allow for.
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
        pixels: turns image files into pixel tensors.
        text_length: questions are cut to this many tokens, [CLS] and [SEP] included.
        blank_text: replace every question by the empty one ([CLS][SEP]); for an image-only model.
        fixed_length: pad every text to `text_length`, not to the longest of its batch.
        edit: changes the resized pictures of a batch, see `Pixels`; null for none.
    """

    tokenizer: Any
    pixels: Pixels
    text_length: int
    blank_text: bool = False
    fixed_length: bool = False
    edit: Edit | None = None


def spread(entries: Sequence[Entry], limit: int | None) -> Sequence[Entry]:
    """At most `limit` entries, spread evenly, so that neighbours (questions about one image) are thinned out.

    Raises:
        InputError: for a limit below 1.
    """
    if limit is None or limit >= len(entries):
        return entries
    if limit < 1:
        raise InputError(f"limit must be at least 1 or null, not {limit}")
    return [entries[index * len(entries) // limit] for index in range(limit)]


def words(texts: Sequence[str], inputs: Inputs) -> dict[str, Tensor]:
    """Texts as the tokenizer's tensors, such as `input_ids`: each (number of texts, T), T the longest, or fixed."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the text {text!r} holds half of a surrogate pair, which is no character") from error
    shown = ["" if inputs.blank_text else text for text in texts]
    padding = "max_length" if inputs.fixed_length else "longest"
    return dict(
        inputs.tokenizer(shown, padding=padding, truncation=True, max_length=inputs.text_length, return_tensors="pt")
    )


def model_inputs(examples: Sequence[Example], inputs: Inputs) -> dict[str, Tensor]:
    """Texts and images of B examples as keyword arguments of a model.

    Returns:
        What `words` gives, (B, T); `pixel_values` (B, 3, height, width), of examples with two images
        (B, 2, 3, height, width); and where the model wants it `pixel_mask`, the same without the 3.
    """
    count = len(examples[0].images)
    pixels = inputs.pixels([path for example in examples for path in example.images], inputs.edit)
    if count > 1:
        pixels = {name: tensor.unflatten(0, (len(examples), count)) for name, tensor in pixels.items()}
    return {**words([example.text for example in examples], inputs), **pixels}


class Task(ABC):
    """A data set in its official files, with its loss and its official score.

    An instance is bound to `labels`, the meaning of the logits' columns. A batch is a dict of `inputs`
    (keyword arguments of the model), `targets` (B, ...) and whatever else `loss` needs.

    Attributes:
        name: key in `pumer.tasks.TASKS`.
        models: transformers `model_type` to the model class for this task.
        head: prefixes of the parameter names that train with the head's learning rate.
        files: one line saying which files the data folder must hold, for error messages.
        splits: the splits that official files may hold.
        groups: names of `Example.groups`, in the order in which tables show them.
        template: the group whose best constant answers are the baseline; null for one constant answer to all.
        result_keys: what the official result file calls an example's id and its answer.
    """

    name: ClassVar[str]
    models: ClassVar[Mapping[str, type[PreTrainedModel]]]
    head: ClassVar[tuple[str, ...]]
    files: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    groups: ClassVar[tuple[str, ...]] = ()
    template: ClassVar[str | None] = None
    result_keys: ClassVar[tuple[str, str]]

    def __init__(self, labels: Sequence[str]) -> None:
        """Bind the task to the meaning of the logits' columns.

        Args:
            labels: one name per column, in order.
        """
        self.labels = tuple(labels)

    @classmethod
    def read(cls, root: Path, split: str, limit: int | None = None) -> list[Example]:
        """Read one split, from a download or from a folder made by `pumer data prepare`.

        Examples whose images a prepared folder had to skip are left out, with a warning that counts them.

        Args:
            root: data folder with the official files.
            split: "train", "val" or "test".
            limit: read only so many examples, spread evenly over the split.

        Returns:
            The examples, in file order.

        Raises:
            InputError: for a missing folder, file or image and for broken content; the message names it.
        """
        return cls.read_and_count(root, split, limit)[0]

    @classmethod
    def read_and_count(cls, root: Path, split: str, limit: int | None = None) -> tuple[list[Example], int]:
        """The examples of a split, as `read` gives them, and how many are left out for want of an image."""
        examples = cls.examples(root, split, limit)
        if not examples:
            raise InputError(f"split {split} in {root} is empty")
        missing = missing_images(path for example in examples for path in example.files)
        if not missing:
            return examples, 0
        path, reason = next(iter(missing.items()))
        storage = storage_of(path)
        if storage is None:
            raise InputError(cls._missing(root, split, path, len(missing)))
        kept = [example for example in examples if missing.keys().isdisjoint(example.images)]
        if not kept:
            raise InputError(f"no example of split {split} in {root} has its images; {path} {reason}")
        left_out = len(examples) - len(kept)
        logger.warning("%d of %d examples are left out: see %s", left_out, len(examples), storage.root / SKIPPED)
        return kept, left_out

    @classmethod
    def _missing(cls, root: Path, split: str, path: Path, count: int) -> str:
        """What to tell about a download without some of its images."""
        if not path.parent.is_dir():
            return f"image folder {path.parent} does not exist; the data folder must hold {cls.files}"
        lists = f"`pumer data check {cls.name} {root}` lists them"
        return f"image {path} does not exist; {count} images of split {split} are missing, {lists}"

    @classmethod
    @abstractmethod
    def examples(cls, root: Path, split: str, limit: int | None = None) -> list[Example]:
        """What the official files of a split say, whether or not the images are there; see `read`."""

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
    @abstractmethod
    def model(cls, checkpoint: str, labels: Sequence[str]) -> PreTrainedModel:
        """A model for this task, started from a checkpoint with or without a fitting head.

        Args:
            checkpoint: local directory or hub name.
            labels: meaning of the logits' columns. Columns of labels that the checkpoint's head knows keep
                their weights; the others are initialised at random.

        Raises:
            InputError: when the checkpoint cannot be read or is of another model type.
        """

    def draw(self, examples: Sequence[Example], index: int, seed: int, epoch: int) -> Example:
        """An example as training shows it: a task may add what it draws for it, from seed, epoch and index alone.

        Raises:
            InputError: when it has no answer to learn.
        """
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
        """What the model says to a batch, (B, number of labels)."""
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
        """Official score of one answer, in [0, 1]; the task's figure is the mean over examples."""

    def candidates(self, example: Example) -> set[str]:
        """Answers that could be right for an example: among them the best constant answer is looked for."""
        return set(example.answers)

    @classmethod
    @abstractmethod
    def truth(cls, annotations: Path, questions: Path | None = None, split: str = "test") -> list[Example]:
        """Examples with their answers but without images, from annotation files wherever they lie: for scoring.

        Args:
            annotations: a file of the task's with the right answers.
            questions: a file that says which of them count, where the task has such files (VQAv2).
            split: the part of a file that holds all splits (retrieval).

        Raises:
            InputError: for a missing or broken file.
        """

    @classmethod
    def known(cls, annotations: Path) -> set[int | str]:
        """The ids in an annotation file, also of what `truth` leaves out: a result file may answer them."""
        return {example.id for example in cls.truth(annotations)}

    def submission(self, examples: Sequence[Example], answers: Sequence[str]) -> list[dict[str, Any]]:
        """The content of the official result file, one entry per example."""
        number, answered = self.result_keys
        pairs = zip(examples, answers, strict=True)
        return [{number: example.id, answered: answer} for example, answer in pairs]

    def write_submission(self, path: Path, examples: Sequence[Example], answers: Sequence[str]) -> None:
        """Write the official result file: JSON, unless the task says otherwise."""
        write_json(path, self.submission(examples, answers))

    @classmethod
    def read_submission(cls, path: Path) -> list[tuple[int | str, str]]:
        """Ids and answers of a file in the official result format, whoever made it.

        Raises:
            InputError: when it is missing or in another format.
        """
        number, answered = cls.result_keys
        entries = read_json(path)
        if not isinstance(entries, list):
            raise InputError(f'{path} must hold a list of {{"{number}": ..., "{answered}": ...}}')
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict) or not {number, answered} <= entry.keys():
                raise InputError(f"{path}: entry {index} must have '{number}' and '{answered}'")
            if not isinstance(entry[answered], str):
                raise InputError(f"{path}: '{answered}' of entry {index} must be text, not {entry[answered]!r}")
            if not isinstance(entry[number], int | str) or isinstance(entry[number], bool):
                raise InputError(f"{path}: '{number}' of entry {index} must be a number or text, not {entry[number]!r}")
        return [(entry[number], entry[answered]) for entry in entries]

    def figures(self, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, list[tuple[float, str]]]:
        """Official figures beside the mean score, by name: values in [0, 1] whose mean is the figure, with sources."""
        return {}

    def choose(self, logits: Tensor) -> Tensor:
        """The column (B,) that each row of the logits (B, number of labels) answers with."""
        return logits.argmax(dim=-1)

    def scores(self, examples: Sequence[Example], answers: Sequence[str]) -> Tensor:
        """Official scores (number of examples,) in float64."""
        pairs = zip(examples, answers, strict=True)
        return torch.tensor([self.score(example, answer) for example, answer in pairs], dtype=torch.float64)
