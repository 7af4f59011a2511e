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
from transformers import PreTrainedModel

from pumer.backbones import Head, backbone_of
from pumer.tasks.annotations import check_unique, checked, read_entries
from pumer.tasks.base import Example, Inputs, Task, spread, tokenize
from pumer.tasks.heads import ranking_from
from pumer.tasks.metrics import CUTOFFS
from pumer.utils.errors import InputError

NEGATIVES = 15
MATCHING_WEIGHT = 0.5
OWN, OTHER = "own", "other"
SPLITS = ("train", "val", "test", "restval")
"""Of Karpathy's files; COCO's "restval" are validation images that most published results train on as well."""
_PIXELS = ("pixel_values", "pixel_mask")
_FIELDS: dict[str, type] = {"filename": str, "imgid": int, "split": str, "sentences": list}


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """One image with its captions: official number (`imgid`), file, and number (`sentid`) and text of each caption."""

    id: int
    path: Path
    captions: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Pair(Example):
    """An image, by its official number, with one of its captions; training adds captions of `others`, other images."""

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

    head_kind: ClassVar[Head] = "retrieval"
    head: ClassVar[tuple[str, ...]] = ("rank_output.",)
    result_keys: ClassVar[tuple[str, str]] = ("query", "found")  # there is no official format
    file: ClassVar[str]
    images: ClassVar[str]

    def __init__(self, labels: Sequence[str] = ()) -> None:
        """Nothing to bind to, labels are ignored: a model's single output is the score of a pair."""
        super().__init__((OWN, *[OTHER] * NEGATIVES))

    @classmethod
    def examples(cls, root: Path, split: str, limit: int | None = None) -> list[Example]:
        """All pairs (`Pair`) of an image and one of its captions; "train+restval" is both splits. See `Task.examples`.

        The `limit` counts **images**, each with all its captions.
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
        return [
            Pair(number, (image.path,), text, image_id=image.id)
            for image in spread(read_images(annotations, cls.images, split), limit)
            for number, text in image.captions
        ]

    @classmethod
    def vocabulary(cls, root: Path, minimum: int) -> tuple[str, ...]:
        """The candidates of a training pair: its own caption, then others."""
        return cls().labels

    @classmethod
    def model(cls, checkpoint: str, labels: Sequence[str]) -> PreTrainedModel:
        """A model that scores pairs; see `pumer.tasks.heads.ranking_from`."""
        return ranking_from(checkpoint, cls.models())

    def draw(self, examples: Sequence[Example], index: int, seed: int, epoch: int) -> Example:
        """A pair with 15 different captions of other images: a function of seed, epoch and index alone.

        The captions of an image are neighbours in `examples`. Refuses fewer captions of other images.
        """
        pair = _pair(examples[index])
        first, end = index, index + 1
        while first > 0 and _pair(examples[first - 1]).image_id == pair.image_id:
            first -= 1
        while end < len(examples) and _pair(examples[end]).image_id == pair.image_id:
            end += 1
        others = len(examples) - (end - first)
        if others < NEGATIVES:
            raise InputError(f"training draws {NEGATIVES} captions of other images, not {others}; use more images")
        drawn = np.random.default_rng((seed, epoch, index)).choice(others, NEGATIVES, replace=False)
        texts = (examples[number if number < first else number + end - first].text for number in drawn)
        return replace(pair, others=tuple(texts))

    def collate(self, examples: Sequence[Example], inputs: Inputs) -> dict[str, Any]:
        """A batch of B pairs with K - 1 wrong captions each; K = 1 without.

        Returns:
            `inputs`: `input_ids` and what else the tokenizer gives, (B * K, T), the captions of a pair one after the
            other and its own first; `pixel_values` and `pixel_mask` of B images; `targets`: zeros (B,).
        """
        texts = [text for pair in map(_pair, examples) for text in (pair.text, *pair.others)]
        pixels = inputs.pixels([pair.images[0] for pair in examples], inputs.edit)
        targets = torch.zeros(len(examples), dtype=torch.int64)
        return {"inputs": {**tokenize(texts, inputs), **pixels}, "targets": targets}

    def logits(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Scores (B, K) of the captions of each image, which is encoded once for all of them where that can be done."""
        inputs = dict(batch["inputs"])
        images, texts = len(inputs["pixel_values"]), len(inputs["input_ids"])
        image = torch.arange(images, device=inputs["input_ids"].device).repeat_interleave(texts // images)
        family = backbone_of(extract_model_from_parallel(model, keep_torch_compile=False))
        if family is not None and family.separable:
            inputs["image_index"] = image
        else:
            inputs |= {name: inputs[name][image] for name in _PIXELS if name in inputs}
        scores: Tensor = model(**inputs).logits
        return scores.view(images, -1)

    def loss(self, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Cross-entropy over scores (B, K), the own caption's first, plus half the matching loss."""
        scores = logits.float()
        matching = (softplus(-scores[:, :1]).mean() + softplus(scores[:, 1:]).mean()) / 2
        return cross_entropy(scores, batch["targets"]) + MATCHING_WEIGHT * matching

    @staticmethod
    def queries(pairs: Sequence[Example]) -> list[Example]:
        """The queries of `pumer evaluate`: for every image its captions, then for every caption its image.

        Their `answers` are the numbers of the true candidates.
        """
        by_image, by_text = [], []
        for image in images_of(pairs):
            captions = tuple(str(number) for number, _ in image.captions)
            by_image.append(Example(f"image {image.id}", (image.path,), "", captions, source=str(image.id)))
        for pair in map(_pair, pairs):
            number = str(pair.image_id)
            by_text.append(Example(f"caption {pair.id}", (), pair.text, (number,), source=number))
        return by_image + by_text

    def score(self, example: Example, answer: str) -> float:
        """Recall@1 of a query, or, for a training pair, whether its own caption was chosen.

        A query's answer holds the numbers of the candidates found, best first, separated by spaces.
        """
        return float(answer == OWN) if isinstance(example, Pair) else _found(example, answer, 1)

    def metrics(self, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, list[tuple[float, str]]]:
        """Recall@1, 5 and 10 of the queries that are images (text retrieval, TR), and of those that are texts (IR)."""
        if isinstance(examples[0], Pair):
            return {}
        queries = list(zip(examples, answers, strict=True))
        return {
            f"{direction} retrieval, recall@{k}": [
                (_found(example, answer, k), example.source)
                for example, answer in queries
                if bool(example.images) == from_image
            ]
            for direction, from_image in (("text", True), ("image", False))
            for k in CUTOFFS
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


def read_images(path: Path, images: str, split: str) -> list[CaptionedImage]:
    """The images of one split, or of several joined by "+", in a file of Karpathy's, in file order.

    The image folders lie beside the file; `images` is the folder for entries that do not name their own (`filepath`).
    """
    wanted = split.split("+")
    if unknown := [name for name in wanted if name not in SPLITS]:
        allowed = ", ".join(SPLITS)
        raise InputError(f"split must be one of {allowed}, or several joined by '+', not '{unknown[0]}'")
    entries = read_entries(path, "images", _FIELDS, f"the official {path.name}", unique="imgid")
    for entry in entries:
        name = entry["filename"]
        if not isinstance(entry.get("filepath", images), str):
            raise InputError(f"{path}: 'filepath' of image {name} must be text, not {entry['filepath']!r}")
        if not entry["sentences"]:
            raise InputError(f"{path}: image {name} has no captions")
        for caption in entry["sentences"]:
            checked(caption, {"raw": str, "sentid": int}, f"{path}: a caption of image {name}")
    check_unique(path, "sentid", (caption["sentid"] for entry in entries for caption in entry["sentences"]))
    return [
        CaptionedImage(
            entry["imgid"],
            path.parent / entry.get("filepath", images) / entry["filename"],
            tuple((caption["sentid"], caption["raw"].strip()) for caption in entry["sentences"]),
        )
        for entry in entries
        if entry["split"] in wanted
    ]


def images_of(pairs: Sequence[Example]) -> list[CaptionedImage]:
    """The images of the pairs with their captions, in order."""
    groups = [list(group) for _, group in groupby(map(_pair, pairs), lambda pair: pair.image_id)]
    return [
        CaptionedImage(same[0].image_id, same[0].files[0], tuple((int(pair.id), pair.text) for pair in same))
        for same in groups
    ]


def _pair(example: Example) -> Pair:
    return cast(Pair, example)


def _found(query: Example, answer: str, k: int) -> float:
    """1 if one of the true candidates of a query is among the first k of the answer, else 0."""
    return float(not set(query.answers).isdisjoint(answer.split()[:k]))
