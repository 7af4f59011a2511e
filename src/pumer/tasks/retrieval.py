"""Retrieval on Flickr30k and COCO in Karpathy's splits: the caption for an image, the image for a caption."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus
from transformers import PreTrainedModel, ViltForImageAndTextRetrieval

from pumer.models.meter import MeterForImageAndTextRetrieval
from pumer.tasks.base import Example, Inputs, Task, spread, words
from pumer.tasks.karpathy import Picture, read_pictures
from pumer.tasks.ranking_head import ranking_from
from pumer.tasks.recall import CUTOFFS
from pumer.utils.errors import InputError

NEGATIVES = 15
MATCHING_WEIGHT = 0.5
OWN, OTHER = "own", "other"
_PIXELS = ("pixel_values", "pixel_mask")


@dataclass(frozen=True, slots=True)
class Pair(Example):
    """An image with one of its captions; training adds captions of other images.

    Attributes:
        image_id: official number of the image.
        others: captions to tell the own one from.
    """

    image_id: int = 0
    others: tuple[str, ...] = ()


class Retrieval(Task):
    """Image-text retrieval in a file of Karpathy's.

    Training shows each pair with 15 captions of other images. Its loss is the cross-entropy over the 16 scores plus
    half of a matching loss, which asks of each score by itself whether image and caption belong together: that makes
    scores of different images comparable, as finding the image for a caption needs. While training, `accuracy` is the
    fraction of pairs whose own caption scores highest of the 16; `pumer evaluate` scores every image with every
    caption.

    Differs from the paper: the released code keeps a second head for the matching loss, and shows it wrong images;
    here it is about the same scores and the same wrong captions, so that it costs no forward pass.

    Attributes:
        file: the JSON file below the data folder.
        images: folder of its images.
    """

    models: ClassVar[Mapping[str, type[PreTrainedModel]]] = {
        "vilt": ViltForImageAndTextRetrieval,
        "meter": MeterForImageAndTextRetrieval,
    }
    head: ClassVar[tuple[str, ...]] = ("rank_output.",)
    result_keys: ClassVar[tuple[str, str]] = ("query", "found")  # there is no official format
    file: ClassVar[str]
    images: ClassVar[str]

    def __init__(self, labels: Sequence[str] = ()) -> None:
        """Nothing to bind to: a model's single output is the score of a pair.

        Args:
            labels: ignored.
        """
        super().__init__((OWN, *[OTHER] * NEGATIVES))

    @classmethod
    def examples(cls, root: Path, split: str, limit: int | None = None) -> list[Example]:
        """All pairs (`Pair`) of an image and one of its captions; see `Task.examples`.

        Args:
            root: data folder.
            split: "train", "val", "test", in COCO "restval"; "train+restval" is both.
            limit: read only so many **images**, spread evenly over the split, each with all its captions.
        """
        return cls.pairs(root / cls.file, split, limit)

    @classmethod
    def annotation_files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The one file that holds all splits."""
        return (root / cls.file,)

    @classmethod
    def truth(cls, annotations: Path, questions: Path | None = None, split: str = "test") -> list[Example]:
        """The queries of a split; see `Task.truth`."""
        return cls.queries(cls.pairs(annotations, split))

    @classmethod
    def pairs(cls, annotations: Path, split: str, limit: int | None = None) -> list[Example]:
        """All pairs of an image and one of its captions, from a file wherever it lies; see `examples`."""
        return _pairs(spread(read_pictures(annotations, cls.images, split), limit))

    @classmethod
    def vocabulary(cls, root: Path, minimum: int) -> tuple[str, ...]:
        """The candidates of a training pair: its own caption, then others."""
        return cls().labels

    @classmethod
    def model(cls, checkpoint: str, labels: Sequence[str]) -> PreTrainedModel:
        """A model that scores pairs; see `pumer.tasks.ranking_head.ranking_from`."""
        return ranking_from(checkpoint, cls.models)

    def draw(self, examples: Sequence[Example], index: int, seed: int, epoch: int) -> Example:
        """A pair with 15 different captions of other images: a function of seed, epoch and index alone.

        Args:
            examples: as read; the captions of an image are neighbours.
            index: of the pair.
            seed: of the drawing.
            epoch: each shows other captions.

        Raises:
            InputError: when there are fewer captions of other images.
        """
        pair = _pair(examples[index])
        return replace(pair, others=_negatives(examples, index, seed, epoch))

    def collate(self, examples: Sequence[Example], inputs: Inputs) -> dict[str, Any]:
        """A batch of B pairs with K - 1 wrong captions each; K = 1 without.

        Returns:
            `inputs`: `input_ids` and what else the tokenizer gives, (B * K, T), the captions of a pair one after the
            other and its own first; `pixel_values` and `pixel_mask` of B images; `targets`: zeros (B,).
        """
        texts = [text for pair in map(_pair, examples) for text in (pair.text, *pair.others)]
        pixels = inputs.pixels([pair.images[0] for pair in examples], inputs.edit)
        targets = torch.zeros(len(examples), dtype=torch.int64)
        return {"inputs": {**words(texts, inputs), **pixels}, "targets": targets}

    def logits(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Scores (B, K) of the captions shown with each image. METER encodes the image once for all of them."""
        inputs = dict(batch["inputs"])
        images, texts = len(inputs["pixel_values"]), len(inputs["input_ids"])
        image = torch.arange(images, device=inputs["input_ids"].device).repeat_interleave(texts // images)
        if isinstance(extract_model_from_parallel(model, keep_torch_compile=False), MeterForImageAndTextRetrieval):
            inputs["image_index"] = image
        else:
            inputs |= {name: inputs[name][image] for name in _PIXELS if name in inputs}
        scores: Tensor = model(**inputs).logits
        return scores.view(images, -1)

    def loss(self, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Cross-entropy over the K captions, plus half the matching loss; a scalar averaged over the batch.

        Args:
            logits: scores (B, K), the own caption's first.
            batch: as made by `collate`.
        """
        scores = logits.float()
        matching = (softplus(-scores[:, :1]).mean() + softplus(scores[:, 1:]).mean()) / 2
        return cross_entropy(scores, batch["targets"]) + MATCHING_WEIGHT * matching

    @staticmethod
    def queries(pairs: Sequence[Example]) -> list[Example]:
        """What `pumer evaluate` asks: for every image its captions, then for every caption its image.

        Args:
            pairs: as read.

        Returns:
            Per query an example whose `answers` are the numbers of the true candidates.
        """
        texts = [
            Example(f"image {shown.id}", (shown.path,), "", _numbers(shown), source=str(shown.id))
            for shown in pictures_of(pairs)
        ]
        return texts + [
            Example(f"caption {pair.id}", (), pair.text, (str(pair.image_id),), source=str(pair.image_id))
            for pair in map(_pair, pairs)
        ]

    def score(self, example: Example, answer: str) -> float:
        """Recall@1 of a query, or, for a training pair, whether its own caption was chosen.

        Args:
            example: one of `queries`, or a pair.
            answer: the numbers of the candidates found, best first, separated by spaces; for a pair a label.
        """
        if isinstance(example, Pair):
            return float(answer == OWN)
        return _found(example, answer, 1)

    def figures(self, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, list[tuple[float, str]]]:
        """Recall@1, 5 and 10 of the queries that are images (text retrieval, TR), and of those that are texts (IR)."""
        queries = list(zip(examples, answers, strict=True))
        return {
            f"{direction} retrieval, recall@{k}": [
                (_found(example, answer, k), example.source)
                for example, answer in queries
                if bool(example.images) == from_image
            ]
            for direction, from_image in (("text", True), ("image", False))
            for k in CUTOFFS
            if not isinstance(examples[0], Pair)
        }


class Flickr30k(Retrieval):
    """Flickr30k: 29,000 images to train on, 1,014 to validate, 1,000 to test, five captions each.

    Files under the data folder, as downloaded and unzipped::

        dataset_flickr30k.json
        flickr30k-images/<number>.jpg
    """

    name: ClassVar[str] = "flickr30k"
    file: ClassVar[str] = "dataset_flickr30k.json"
    images: ClassVar[str] = "flickr30k-images"
    files: ClassVar[str] = f"{file} and the folder {images}"


class Coco(Retrieval):
    """COCO captions: 82,783 images to train on, 30,504 more as "restval", 5,000 to validate, 5,000 to test.

    Files under the data folder, as downloaded and unzipped::

        dataset_coco.json
        {train2014,val2014}/COCO_{train2014,val2014}_<12 digits>.jpg

    Give `data.train=train+restval` to train on both, as most published results do, and `galleries=5x1000` for the
    "1K" protocol. All captions of an image count, also where there are more than five.
    """

    name: ClassVar[str] = "coco"
    file: ClassVar[str] = "dataset_coco.json"
    images: ClassVar[str] = "val2014"
    files: ClassVar[str] = f"{file} and the folders train2014 and val2014"
    splits: ClassVar[tuple[str, ...]] = ("train", "restval", "val", "test")


def _pairs(pictures: Sequence[Picture]) -> list[Example]:
    return [
        Pair(number, (picture.path,), text, image_id=picture.id)
        for picture in pictures
        for number, text in picture.captions
    ]


def pictures_of(pairs: Sequence[Example]) -> list[Picture]:
    """The images of the pairs with their captions, in order."""
    groups = [list(group) for _, group in groupby(map(_pair, pairs), lambda pair: pair.image_id)]
    return [
        Picture(same[0].image_id, same[0].files[0], tuple((int(pair.id), pair.text) for pair in same))
        for same in groups
    ]


def _pair(example: Example) -> Pair:
    return cast(Pair, example)


def _found(query: Example, answer: str, k: int) -> float:
    """1 if one of the true candidates of a query is among the first k of the answer, else 0."""
    return float(not set(query.answers).isdisjoint(answer.split()[:k]))


def _numbers(picture: Picture) -> tuple[str, ...]:
    return tuple(str(number) for number, _ in picture.captions)


def _negatives(pairs: Sequence[Example], index: int, seed: int, epoch: int) -> tuple[str, ...]:
    image = _pair(pairs[index]).image_id
    first, end = index, index + 1
    while first > 0 and _pair(pairs[first - 1]).image_id == image:
        first -= 1
    while end < len(pairs) and _pair(pairs[end]).image_id == image:
        end += 1
    others = len(pairs) - (end - first)
    if others < NEGATIVES:
        raise InputError(f"training draws {NEGATIVES} captions of other images, not {others}; use more images")
    drawn = np.random.default_rng((seed, epoch, index)).choice(others, NEGATIVES, replace=False)
    return tuple(pairs[number if number < first else number + end - first].text for number in drawn)
