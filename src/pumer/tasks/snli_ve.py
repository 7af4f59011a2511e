"""SNLI-VE in its official files (github.com/necla-ml/SNLI-VE): does an image entail a sentence?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pumer.backbones import Head
from pumer.data.storage import images_in
from pumer.tasks.annotations import check_folder, check_split, image_file, read_entry_lines
from pumer.tasks.base import Example, spread
from pumer.tasks.classification import SingleLabel
from pumer.utils.errors import InputError

_NAMES = {"train": "train", "val": "dev", "test": "test"}
_NO_AGREEMENT = "-"
_IMAGES = "flickr30k-images"
_FIELDS = {"pairID": str, "sentence2": str, "gold_label": str}


class SNLIVE(SingleLabel):
    """Visual entailment: a photograph contradicts a sentence, entails it, or neither.

    The score is accuracy. Sentences whose annotators did not agree (gold label `-`) are left out.

    Files under the data folder, as downloaded and unzipped::

        snli_ve_{train,dev,test}.jsonl
        flickr30k-images/<Flickr30K_ID>.jpg   (or .png)
    """

    name: ClassVar[str] = "snli_ve"
    head_kind: ClassVar[Head] = "question_answering"
    files: ClassVar[str] = f"the official snli_ve_*.jsonl and the folder {_IMAGES}"
    fixed_labels: ClassVar[tuple[str, ...]] = ("contradiction", "neutral", "entailment")
    result_keys: ClassVar[tuple[str, str]] = ("pairID", "gold_label")

    @classmethod
    def examples(cls, root: Path, split: str, limit: int | None = None) -> list[Example]:
        """Read a split; see `Task.examples`."""
        (file,) = cls.annotation_files(root, split)
        entries, folder = spread(_entries(file), limit), root / _IMAGES
        names = images_in(folder)
        return [_example(entry, image_file(folder, str(entry["Flickr30K_ID"]), names)) for entry in entries]

    @classmethod
    def annotation_files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The split's file; see `Task.annotation_files`."""
        check_split(split, _NAMES)
        check_folder(root, cls.files)
        return (root / f"snli_ve_{_NAMES[split]}.jsonl",)

    @classmethod
    def truth(cls, annotations: Path, questions: Path | None = None, split: str = "test") -> list[Example]:
        """Sentences and labels from one annotation file; see `Task.truth`."""
        return [_example(entry) for entry in _entries(annotations)]

    @classmethod
    def known(cls, annotations: Path) -> set[int | str]:
        """The ids of all lines, also of those without a gold label; see `Task.known`."""
        return {entry["pairID"] for entry in read_entry_lines(annotations, {"pairID": str}, cls.files, "pairID")}

    @classmethod
    def read_submission(cls, path: Path) -> list[tuple[int | str, str]]:
        """Labels of a result file; see `Task.read_submission`."""
        answers = super().read_submission(path)
        for number, label in answers:
            _check_label(path, number, label)
        return answers


def _example(entry: Mapping[str, Any], *images: Path) -> Example:
    label, image_id = (entry["gold_label"],), str(entry["Flickr30K_ID"])
    return Example(entry["pairID"], images, entry["sentence2"], label, source=image_id)


def _entries(path: Path) -> list[dict[str, Any]]:
    """The lines with a gold label; some releases give `Flickr30K_ID` as a number."""
    entries = read_entry_lines(path, _FIELDS, SNLIVE.files, unique="pairID")
    agreed = [entry for entry in entries if entry["gold_label"] != _NO_AGREEMENT]
    for entry in agreed:
        _check_label(path, entry["pairID"], entry["gold_label"])
        if entry.get("Flickr30K_ID") is None:
            raise InputError(f"{path}: {entry['pairID']} has no 'Flickr30K_ID'")
    return agreed


def _check_label(path: Path, number: int | str, label: str) -> None:
    if label not in SNLIVE.fixed_labels:
        allowed = ", ".join(SNLIVE.fixed_labels)
        raise InputError(f"{path}: gold_label of {number} must be {allowed}, not '{label}'")
