"""Fine-tune on your own questions about your own images: the unreduced model, then the reduced one with it as teacher.

    python examples/train_on_your_vqa.py questions.csv photos/ out/mine
    python examples/train_on_your_vqa.py questions.csv photos/ out/mine --model small:vilt batch_size=8 max_steps=100

questions.csv has the columns image (a file in the folder photos/), question and answer; a .json file with a list of
objects with these keys works too. Every tenth image is held out with its questions. Further arguments are settings of
`pumer train`, for both trainings.

out/mine/data is written in VQAv2's official format, so all commands work on it afterwards, such as
`pumer data check vqav2 out/mine/data` and `pumer evaluate out/mine/reduced`.
"""

import argparse
import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pumer.settings.train import TrainConfig
from pumer.training import run as training
from pumer.utils.config import load
from pumer.utils.errors import InputError

REDUCTION = "{method: pumer, layers: [2, 5, 8], prune_ratio: 0.1, merge_ratio: 0.3, text_merge_ratio: 0.2}"
ANNOTATORS = 10
HELD_OUT = 10
"""Every tenth image is for evaluation."""


def main() -> None:
    """Convert the questions, train twice and print both accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path, help="CSV or JSON file with image, question and answer")
    parser.add_argument("images", type=Path, help="folder of the images")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of `pumer train`")
    parser.add_argument("--model", default="dandelin/vilt-b32-mlm", help="checkpoint to start from")
    arguments = parser.parse_intermixed_args()
    try:
        configs = trainings(arguments.model, arguments.out, arguments.settings)
        convert(read(arguments.questions), arguments.images, arguments.out / "data")
        for name, config in configs.items():
            accuracy = training.run(config)["accuracy"]["mean"]
            print(f"{name}: {accuracy:.1%} of the held-out questions, in {config.output}")
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def read(path: Path) -> list[dict[str, str]]:
    """The questions of a CSV or JSON file: mappings with image, question and answer.

    Raises:
        SystemExit: When the file cannot be read, or one of them is missing somewhere.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = json.load(file) if path.suffix == ".json" else list(csv.DictReader(file))
    except (ValueError, csv.Error) as error:
        raise SystemExit(f"{path} is neither CSV nor JSON in UTF-8: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SystemExit(f"{path} must hold a list of objects with image, question and answer")
    for number, row in enumerate(rows, start=1):
        missing = [name for name in ("image", "question", "answer") if not row.get(name)]
        if missing:
            raise SystemExit(f"{path}: question {number} has no {' and no '.join(missing)}")
    return list(rows)


def convert(rows: Sequence[Mapping[str, str]], images: Path, out: Path) -> None:
    """Write the official files: every tenth image and its questions into the split "val", the others into "train".

    Args:
        rows: mappings with image, question and answer.
        images: folder of the images.
        out: folder to write.

    Raises:
        SystemExit: When there are too few images to hold one out, or one of them does not exist.
    """
    numbers = {name: number for number, name in enumerate(sorted({row["image"] for row in rows}))}
    if len(numbers) < HELD_OUT:
        raise SystemExit(f"the questions are about {len(numbers)} images; give {HELD_OUT} or more")
    absent = next((name for name in numbers if not (images / name).is_file()), None)
    if absent is not None:
        raise SystemExit(f"{images / absent} does not exist")
    entries: dict[str, list[dict[str, Any]]] = {"train2014": [], "val2014": []}
    for row in rows:
        number = numbers[row["image"]]
        folder = "val2014" if number % HELD_OUT == 0 else "train2014"
        entries[folder].append(
            {"image_id": number, "question": row["question"], "answer": row["answer"], "question_type": "any"}
        )
    for folder, asked in entries.items():
        held = {number: images / name for name, number in numbers.items()}
        write_split(out, folder, asked, {entry["image_id"]: held[entry["image_id"]] for entry in asked})


def write_split(out: Path, folder: str, asked: Iterable[Mapping[str, Any]], images: Mapping[int, Any]) -> None:
    """Write one split as VQAv2's questions, annotations and images.

    Args:
        out: data folder.
        folder: "train2014" or "val2014".
        asked: mappings with image_id, question, answer and question_type; the one answer stands for all annotators.
        images: path of the image of each image_id.
    """
    (out / folder).mkdir(parents=True, exist_ok=True)
    for number, image in images.items():
        suffix = ".png" if image.name.lower().endswith(".png") else ".jpg"  # only the content decides how it is read
        (out / folder / f"COCO_{folder}_{number:012d}{suffix}").write_bytes(image.read_bytes())
    questions, annotations = [], []
    for number, entry in enumerate(asked):
        key, answer = {"image_id": entry["image_id"], "question_id": number}, entry["answer"]
        answers = [{"answer_id": i + 1, "answer": answer, "answer_confidence": "yes"} for i in range(ANNOTATORS)]
        questions.append(key | {"question": entry["question"]})
        annotations.append(
            key
            | {"answers": answers, "multiple_choice_answer": answer}
            | {"answer_type": "yes/no" if answer in ("yes", "no") else "other"}
            | {"question_type": entry["question_type"]}
        )
    for name, content in (
        (f"v2_OpenEnded_mscoco_{folder}_questions.json", {"questions": questions}),
        (f"v2_mscoco_{folder}_annotations.json", {"annotations": annotations}),
    ):
        (out / name).write_text(json.dumps(content), encoding="utf-8")


def trainings(model: str, out: Path, settings: Sequence[str] = ()) -> dict[str, TrainConfig]:
    """The settings of both runs: the unreduced model, then the reduced one, which learns from the answers and from it.

    Raises:
        InputError: When a setting is unknown or its value is not allowed.
    """
    common = [f"model={model}", f"data.root={out / 'data'}", "data.min_answer_count=1", *settings]
    runs = {"original": [], "reduced": [f"reduction={REDUCTION}", f"teacher={out / 'original'}"]}
    return {name: load(TrainConfig, None, [*common, *own, f"output={out / name}"]) for name, own in runs.items()}


if __name__ == "__main__":
    main()
