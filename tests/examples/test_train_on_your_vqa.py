import csv
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

import pumer
from pumer.tasks import VQAv2

SCRIPT = Path(__file__).parents[2] / "examples" / "train_on_your_vqa.py"
COLOURS = ("red", "green", "blue")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        suffix, kind = (("jpeg", "JPEG"), ("PNG", "PNG"), ("webp", "WEBP"))[number % 3]
        Image.new("RGB", (40, 32), COLOURS[number % 3]).save(folder / f"{number:02d}.{suffix}", kind)
    return folder


@pytest.fixture
def rows(photos):
    asked = ("what colour is this?", "is it red?")
    return [
        {"image": path.name, "question": question, "answer": answer}
        for number, path in enumerate(sorted(photos.iterdir()))
        for question, answer in zip(asked, (COLOURS[number % 3], "yes" if number % 3 == 0 else "no"), strict=True)
    ]


@pytest.fixture(params=["csv", "json"])
def questions(request, rows, tmp_path):
    path = tmp_path / f"questions.{request.param}"
    if request.param == "json":
        path.write_text(json.dumps(rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["image", "question", "answer"])
            writer.writeheader()
            writer.writerows(rows)
    return path


def test_every_question_is_in_one_split_with_its_image(script, questions, rows, photos, tmp_path):
    script.convert(script.read(questions), photos, tmp_path / "data")
    splits = {split: VQAv2.read(tmp_path / "data", split) for split in ("train", "val")}
    found = [(example.text, example.answers[0], *example.images) for split in splits.values() for example in split]
    assert sorted(entry[:2] for entry in found) == sorted((row["question"], row["answer"]) for row in rows)
    for text, answer, image in found:
        pixel = Image.open(image).convert("RGB").getpixel((0, 0))
        colour = COLOURS[max(range(3), key=lambda channel: pixel[channel])]
        assert answer == (colour if text.startswith("what") else "yes" if colour == "red" else "no")
    images = {split: {Image.open(e.images[0]).format + e.images[0].name for e in splits[split]} for split in splits}
    assert len(images["train"]) == 10 and len(images["val"]) == 2  # images 0 and 10 of 12


def test_both_models_are_trained(script, rows, photos, tiny_vilt, tmp_path, monkeypatch, capsys):
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(rows))
    settings = ["batch_size=4", "max_steps=2", "report_to=[]"]
    arguments = [str(path), str(photos), str(tmp_path / "out"), "--model", str(tiny_vilt), *settings]
    monkeypatch.setattr(sys, "argv", ["train_on_your_vqa", *arguments])
    script.main()
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["original", "reduced"]
    original, reduced = (pumer.load(tmp_path / "out" / name) for name in ("original", "reduced"))
    assert pumer.reduction(original) == pumer.NoReduction()
    assert pumer.reduction(reduced).method == "pumer"
    record = json.loads((tmp_path / "out" / "reduced" / "run.json").read_text())
    assert record["config"]["teacher"] == str(tmp_path / "out" / "original")


@pytest.mark.parametrize("spoil", ["no answer", "few images", "absent image"])
def test_unusable_questions_are_refused_by_name(script, spoil, rows, photos, tmp_path):
    path = tmp_path / "questions.json"
    if spoil == "no answer":
        del rows[3]["answer"]
    elif spoil == "few images":
        rows = rows[:6]
    else:
        (photos / rows[-1]["image"]).unlink()
    path.write_text(json.dumps(rows))
    named = {"no answer": "question 4 .* answer", "few images": "3 images", "absent image": rows[-1]["image"]}
    with pytest.raises(SystemExit, match=named[spoil]):
        script.convert(script.read(path), photos, tmp_path / "data")


@pytest.mark.parametrize("content", [b"", b"{", b'{"image": "a.png"}', '["\u00e9"]'.encode("latin-1"), b"[1]"])
def test_a_file_that_holds_no_questions(script, content, photos, tmp_path):
    path = tmp_path / "questions.json"
    path.write_bytes(content)
    with pytest.raises(SystemExit, match=r"questions\.json"):
        script.read(path)


@pytest.mark.parametrize("wrong", ["bach_size=4", "batch_size=0", "absent.csv"])
def test_wrong_arguments_end_in_one_line_before_anything_is_written(script, wrong, questions, photos, tmp_path):
    given = [str(tmp_path / wrong)] if wrong.endswith("csv") else [str(questions)]
    settings = [] if wrong.endswith("csv") else [wrong]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match=rf"error: .*{wrong.partition('=')[0]}"):
        patch.setattr(sys, "argv", ["train_on_your_vqa", *given, str(photos), str(tmp_path / "out"), *settings])
        script.main()
    assert not (tmp_path / "out").exists()
