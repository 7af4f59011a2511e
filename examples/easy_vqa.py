"""easy-VQA in the official VQAv2 format, so that the same commands run on it.

easy-VQA (Victor Zhou, MIT licence, https://github.com/vzhou842/easy-VQA) has 64 x 64 pictures of one shape each and
simple questions with one answer. Its train split becomes train2014, its test split val2014; the one answer stands in
for all ten annotators.

    python examples/easy_vqa.py easy-vqa.zip out/easy-vqa
    pumer train recipes/vilt/easy-vqa-original.yaml
    pumer evaluate out/vilt-small/easy-vqa-original
"""

import argparse
import json
import re
import zipfile
from pathlib import Path
from typing import Any

SPLITS = {"train": "train2014", "test": "val2014"}
ANNOTATORS = 10


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
    return {folder: _convert_split(root / split, folder, out) for split, folder in SPLITS.items()}


def _convert_split(source: Any, folder: str, out: Path) -> int:
    entries = json.loads((source / "questions.json").read_text(encoding="utf-8"))
    questions, annotations = [], []
    for number, (question, answer, image) in enumerate(entries):
        key = {"image_id": image, "question_id": number}
        questions.append(key | {"question": question})
        annotations.append(key | _annotation(question, answer))
    (out / folder).mkdir(parents=True, exist_ok=True)
    for image in sorted({image for _, _, image in entries}):
        copy = out / folder / f"COCO_{folder}_{image:012d}.png"
        copy.write_bytes((source / "images" / f"{image}.png").read_bytes())
    _write(out / f"v2_OpenEnded_mscoco_{folder}_questions.json", {"questions": questions})
    _write(out / f"v2_mscoco_{folder}_annotations.json", {"annotations": annotations})
    return len(questions)


def _annotation(question: str, answer: str) -> dict[str, Any]:
    answers = [{"answer_id": i + 1, "answer": answer, "answer_confidence": "yes"} for i in range(ANNOTATORS)]
    return {
        "answers": answers,
        "multiple_choice_answer": answer,
        "answer_type": "yes/no" if answer in ("yes", "no") else "other",
        "question_type": _template(question),
    }


def _template(question: str) -> str:
    """The question without its colours and shapes: `is there a red shape?` becomes `is there a ... shape`."""
    blank = re.sub(r"\b(red|green|blue|black|gray|teal|brown|yellow|circle|rectangle|triangle)\b", "...", question)
    return re.sub(r"\ban? ?\.\.\.", "a ...", blank).rstrip("?")


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps({"info": {"description": "easy-VQA", "version": "1.0"}, **content}), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="easy-vqa.zip, or the folder it unzips to")
    parser.add_argument("out", type=Path, help="folder to write")
    arguments = parser.parse_args()
    for folder, count in convert(arguments.source, arguments.out).items():
        print(f"{folder}: {count} questions")
