import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from pumer.tasks import VQAv2

SCRIPT = Path(__file__).parents[2] / "examples" / "easy_vqa.py"


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "easy"
    for split, colour in (("train", "red"), ("test", "blue")):
        (root / split / "images").mkdir(parents=True)
        Image.new("RGB", (64, 64), colour).save(root / split / "images" / "7.png")
        questions = [["what color is the shape?", colour, 7], ["is there a red circle?", "no", 7]]
        (root / split / "questions.json").write_text(json.dumps(questions))
    return root


@pytest.mark.parametrize("zipped", [False, True])
def test_official_files(script, source, tmp_path, zipped):
    if zipped:
        with zipfile.ZipFile(tmp_path / "easy.zip", "w") as archive:
            for path in source.rglob("*"):
                archive.write(path, path.relative_to(source))
        source = tmp_path / "easy.zip"
    out = tmp_path / "out"
    assert script.convert(source, out) == {"train2014": 2, "val2014": 2}
    assert VQAv2.vocabulary(out, minimum=1) == ("blue", "no", "red")
    question, existence = VQAv2.read(out, "val")
    assert question.text == "what color is the shape?"
    assert question.answers == ("blue",) * 10
    assert question.groups == {"answer_type": "other", "question_type": "what color is the shape"}
    assert existence.groups == {"answer_type": "yes/no", "question_type": "is there a ... ..."}
    assert Image.open(question.images[0]).getpixel((0, 0)) == (0, 0, 255)


def test_another_folder_is_refused(script, tmp_path):
    with pytest.raises(SystemExit, match=r"train/questions\.json"):
        script.convert(tmp_path, tmp_path / "out")
