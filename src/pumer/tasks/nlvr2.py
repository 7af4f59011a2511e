"""NLVR2 in its official files (lil.nlp.cornell.edu/nlvr): is a sentence true of two images?"""

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pumer.backbones import Head
from pumer.tasks.annotations import check_folder, check_split, read_entry_lines
from pumer.tasks.base import Example, spread
from pumer.tasks.classification import SingleLabel
from pumer.utils.errors import InputError
from pumer.utils.files import read_csv, write_text

_NAMES = {"train": "train", "val": "dev", "test": "test1"}
_SUBSETS = ("balanced", "unbalanced")
_SPLITS = (*_NAMES, *(f"{name}-{subset}" for name in ("val", "test") for subset in _SUBSETS))


class NLVR2(SingleLabel):
    """Sentences about two photographs, true or false.

    The score is accuracy; `consistency` is the fraction of sentences that were judged right for all their pairs of
    images. Where the files of the balanced and unbalanced subsets are there too, accuracy is also given by subset.

    Splits are "train", "val" and "test", and where their files are there, "val-balanced", "val-unbalanced",
    "test-balanced" and "test-unbalanced": the official subsets.

    Files under the data folder, as in the official repository (here or below `data/`), and the images as unzipped::

        {train,dev,test1}.json                                           one JSON object per line
        {balanced,unbalanced}/{balanced,unbalanced}_{dev,test1}.json     the subsets, where wanted
        images/train/<directory>/<name>  images/dev/<name>  images/test1/<name>

    with names like `dev-850-0-img0.png`. Some of the images are JPEG or GIF files by their content.
    """

    name: ClassVar[str] = "nlvr2"
    head_kind: ClassVar[Head] = "image_pair"
    files: ClassVar[str] = "the official train.json, dev.json and test1.json and the folder images"
    groups: ClassVar[tuple[str, ...]] = ("subset",)
    fixed_labels: ClassVar[tuple[str, ...]] = ("False", "True")
    image_count: ClassVar[int] = 2
    result_keys: ClassVar[tuple[str, str]] = ("identifier", "prediction")

    @classmethod
    def examples(cls, root: Path, split: str, limit: int | None = None) -> list[Example]:
        """Read a split; see `Task.examples`. Scores are grouped by `subset` where the subsets' files are there."""
        file, *subsets = cls.annotation_files(root, split)
        if subsets and not file.is_file():
            others = " or ".join(f"{split}-{path.parent.name}" for path in subsets)
            raise InputError(f"{file} does not exist; add it, or give split {others}")
        subset = {entry["identifier"]: path.parent.name for path in subsets for entry in _entries(path)}
        folder = root / "images" / _name_and_subset(split)[0]
        examples = []
        for entry in spread(_entries(file), limit):
            groups = {"subset": subset.get(entry["identifier"], "neither")} if subset else {}
            examples.append(_example(entry, _images(entry, folder), groups))
        return examples

    @classmethod
    def annotation_files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The split's file, and those of its subsets that are there; see `Task.annotation_files`."""
        name, subset = _name_and_subset(split)
        check_folder(root, cls.files)
        folders = (root, root / "data")
        parts = [folder / kind / f"{kind}_{name}.json" for folder in folders for kind in _SUBSETS]
        there = [path for path in parts if path.is_file()]
        if subset:
            chosen = next((path for path in there if path.parent.name == subset), None)
            if chosen is None:
                lacking = f"{subset}/{subset}_{name}.json"
                raise InputError(f"split {split} is in {lacking}, which {root} lacks; add it, or give another split")
            return (chosen,)
        whole = [folder / f"{name}.json" for folder in folders]
        return (next((path for path in whole if path.is_file()), whole[0]), *there)

    @classmethod
    def truth(cls, annotations: Path, questions: Path | None = None, split: str = "test") -> list[Example]:
        """Sentences and labels from one annotation file; see `Task.truth`."""
        return [_example(entry) for entry in _entries(annotations)]

    def metrics(self, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, list[tuple[float, str]]]:
        """`consistency`: per sentence, 1 if it was judged right for all pairs of images it is asked about."""
        right: dict[str, list[float]] = defaultdict(list)
        for example, answer in zip(examples, answers, strict=True):
            split, pair_set, _, sentence = str(example.id).rsplit("-", 3)
            right[f"{split}-{pair_set}-{sentence}"].append(self.score(example, answer))
        return {"consistency": [(min(scores), sentence.rpartition("-")[0]) for sentence, scores in right.items()]}

    def write_submission(self, path: Path, examples: Sequence[Example], answers: Sequence[str]) -> None:
        """Write the official result file: a line `identifier,prediction` per pair, without a heading."""
        text = io.StringIO()
        rows = ((example.id, answer) for example, answer in zip(examples, answers, strict=True))
        csv.writer(text, lineterminator="\n").writerows(rows)
        write_text(path, text.getvalue())

    @classmethod
    def read_submission(cls, path: Path) -> list[tuple[int | str, str]]:
        """Predictions of a result file, written as True or False in any case; see `Task.read_submission`."""
        rows = read_csv(path, "give lines like 'dev-1-0-0,True'")
        for number, row in rows:
            if len(row) != 2 or row[1].strip().capitalize() not in cls.fixed_labels:
                raise InputError(f"{path}: line {number} must be 'identifier,True' or 'identifier,False', not {row}")
        return [(row[0].strip(), row[1].strip().capitalize()) for _, row in rows]


def _name_and_subset(split: str) -> tuple[str, str]:
    """The official name of a split and the subset it is, if any: ("dev", "balanced") of "val-balanced"."""
    check_split(split, _SPLITS)
    name, _, subset = split.partition("-")
    return _NAMES[name], subset


def _entries(path: Path) -> list[dict[str, Any]]:
    entries = read_entry_lines(path, {"identifier": str, "sentence": str}, NLVR2.files, unique="identifier")
    for entry in entries:
        if entry["identifier"].count("-") < 3:
            raise InputError(f"{path}: identifier '{entry['identifier']}' is not of the form split-set-pair-sentence")
    return entries


def _example(
    entry: Mapping[str, Any], images: tuple[Path, ...] = (), groups: Mapping[str, str] | None = None
) -> Example:
    """An example; its source is the set of pairs that share images and sentences, "dev-850" of "dev-850-0-1"."""
    source = entry["identifier"].rsplit("-", 2)[0]
    return Example(entry["identifier"], images, entry["sentence"], _label(entry), groups or {}, source)


def _images(entry: Mapping[str, Any], folder: Path) -> tuple[Path, ...]:
    if folder.name == "train":
        if "directory" not in entry:
            root = folder.parents[1]
            raise InputError(f"example {entry['identifier']} of NLVR2's train split in {root} has no 'directory'")
        folder /= str(entry["directory"])
    pair = entry["identifier"].rpartition("-")[0]
    return tuple(folder / f"{pair}-img{number}.png" for number in range(2))


def _label(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """The right label, if the file gives it: "True" or "False", also where it is written as a boolean."""
    if "label" not in entry:
        return ()
    label = str(entry["label"]).capitalize()
    if label not in NLVR2.fixed_labels:
        raise InputError(f"label of example {entry['identifier']} must be True or False, not '{entry['label']}'")
    return (label,)
