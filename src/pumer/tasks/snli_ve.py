"""SNLI-VE in its official files (github.com/necla-ml/SNLI-VE): does an image entail a sentence?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel, ViltForQuestionAnswering

from pumer.data.storage import images_in
from pumer.models.meter import MeterForQuestionAnswering
from pumer.tasks.base import Example, spread
from pumer.tasks.classification import SingleLabel
from pumer.tasks.records import lines
from pumer.utils.errors import InputError

_NAMES = {"train": "train", "val": "dev", "test": "test"}
_NO_AGREEMENT = "-"
_IMAGES = "flickr30k-images"


class SNLIVE(SingleLabel):
    """Visual entailment: a photograph contradicts a sentence, entails it, or neither.

    The score is accuracy. Sentences whose annotators did not agree (gold label `-`) are left out.

    Files under the data folder, as downloaded and unzipped::

        snli_ve_{train,dev,test}.jsonl
        flickr30k-images/<Flickr30K_ID>.jpg   (or .png)
    """

    name: ClassVar[str] = "snli_ve"
    models: ClassVar[Mapping[str, type[PreTrainedModel]]] = {
        "vilt": ViltForQuestionAnswering,
        "meter": MeterForQuestionAnswering,
    }
    files: ClassVar[str] = f"the official snli_ve_*.jsonl and the folder {_IMAGES}"
    fixed_labels: ClassVar[tuple[str, ...]] = ("contradiction", "neutral", "entailment")
    result_keys: ClassVar[tuple[str, str]] = ("pairID", "gold_label")

    @classmethod
    def examples(cls, root: Path, split: str, limit: int | None = None) -> list[Example]:
        """Read a split; see `Task.examples`."""
        (file,) = cls.annotation_files(root, split)
        entries = spread(_entries(file), limit)
        folder = root / _IMAGES
        there = images_in(folder)
        examples = []
        for entry in entries:
            number = entry["Flickr30K_ID"]
            suffix = ".png" if f"{number}.png" in there else ".jpg"
            image = folder / f"{number}{suffix}"
            examples.append(_example(entry, (image,)))
        return examples

    @classmethod
    def annotation_files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The split's file; see `Task.annotation_files`."""
        if split not in _NAMES:
            raise InputError(f"split must be one of {', '.join(_NAMES)}, not '{split}'")
        if not root.is_dir():
            raise InputError(f"data folder {root} does not exist; give data.root=FOLDER with {cls.files}")
        return (root / f"snli_ve_{_NAMES[split]}.jsonl",)

    @classmethod
    def truth(cls, annotations: Path, questions: Path | None = None, split: str = "test") -> list[Example]:
        """Sentences and labels from one annotation file; see `Task.truth`."""
        return [_example(entry, ()) for entry in _entries(annotations)]

    @classmethod
    def known(cls, annotations: Path) -> set[int | str]:
        """The ids of all lines, also of those without a gold label; see `Task.known`."""
        return {entry["pairID"] for entry in lines(annotations, {"pairID": str}, cls.files, unique="pairID")}

    @classmethod
    def read_submission(cls, path: Path) -> list[tuple[int | str, str]]:
        """Labels of a result file; see `Task.read_submission`."""
        entries = super().read_submission(path)
        for number, label in entries:
            if label not in cls.fixed_labels:
                allowed = ", ".join(cls.fixed_labels)
                raise InputError(f"{path}: {cls.result_keys[1]} of {number} must be {allowed}, not '{label}'")
        return entries


def _example(entry: Mapping[str, Any], images: tuple[Path, ...]) -> Example:
    label, picture = (entry["gold_label"],), str(entry["Flickr30K_ID"])
    return Example(entry["pairID"], images, entry["sentence2"], label, source=picture)


def _entries(path: Path) -> list[dict[str, Any]]:
    """The lines with a gold label; `Flickr30K_ID` as text, which some releases give as a number."""
    kinds = {"pairID": str, "sentence2": str, "gold_label": str}
    agreed = []
    for entry in lines(path, kinds, SNLIVE.files, unique="pairID"):
        if entry["gold_label"] == _NO_AGREEMENT:
            continue
        if entry["gold_label"] not in SNLIVE.fixed_labels:
            allowed = ", ".join(SNLIVE.fixed_labels)
            raise InputError(f"{path}: gold_label of {entry['pairID']} must be {allowed}, not '{entry['gold_label']}'")
        if entry.get("Flickr30K_ID") is None:
            raise InputError(f"{path}: {entry['pairID']} has no 'Flickr30K_ID'")
        agreed.append(entry)
    return agreed
