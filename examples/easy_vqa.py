"""easy-VQA in the official VQAv2 format, so that the same commands run on it.

easy-VQA (Victor Zhou, MIT licence, https://github.com/vzhou842/easy-VQA) has 64 x 64 images of one shape each and
simple questions with one answer. Its train split becomes train2014, its test split val2014; the one answer stands in
for all ten annotators.

    python examples/easy_vqa.py easy-vqa.zip out/easy-vqa
    pumer train vilt/easy-vqa-original
    pumer evaluate out/vilt-small/easy-vqa-original
"""

import argparse
import json
import re
import zipfile
from pathlib import Path

from train_on_your_vqa import write_split

SPLITS = {"train": "train2014", "test": "val2014"}


def convert(source: Path, out: Path) -> dict[str, int]:
    """Write the official files.

    Args:
        source: the zip file or the folder it unzips to, with `train/` and `test/`, each with `questions.json` (a list
            of [question, answer, image id]) and `images/<image id>.png`.
        out: folder to write.

    Returns:
        Number of questions by split.

    Raises:
        SystemExit: When the source is neither.
    """
    root = zipfile.Path(source) if source.is_file() else source
    for split in SPLITS:
        if not (root / split / "questions.json").is_file():
            raise SystemExit(f"{source} holds no {split}/questions.json; give easy-vqa.zip or the folder it unzips to")
    counts = {}
    for split, folder in SPLITS.items():
        asked = [
            {"image_id": image, "question": question, "answer": answer, "question_type": template(question)}
            for question, answer, image in json.loads((root / split / "questions.json").read_text(encoding="utf-8"))
        ]
        ids = {entry["image_id"] for entry in asked}
        write_split(out, folder, asked, {number: root / split / "images" / f"{number}.png" for number in ids})
        counts[folder] = len(asked)
    return counts


def template(question: str) -> str:
    """The question without its colours and shapes: `is there a red shape?` becomes `is there a ... shape`."""
    blank = re.sub(r"\b(red|green|blue|black|gray|teal|brown|yellow|circle|rectangle|triangle)\b", "...", question)
    return re.sub(r"\ban? ?\.\.\.", "a ...", blank).rstrip("?")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="easy-vqa.zip, or the folder it unzips to")
    parser.add_argument("out", type=Path, help="folder to write")
    arguments = parser.parse_args()
    for folder, count in convert(arguments.source, arguments.out).items():
        print(f"{folder}: {count} questions")
