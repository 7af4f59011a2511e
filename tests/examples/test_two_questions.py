import runpy
import sys
from pathlib import Path

from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "two_questions.py"


def test_the_picture_shows_one_drawing_per_question(tmp_path, monkeypatch):
    out = tmp_path / "tokens.png"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(out), "--scene", "5"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert Image.open(out).height > 1000  # each is some 600 high
    questions = runpy.run_path(str(SCRIPT))["questions"]
    for scene in range(10):
        _, (first, second) = questions(scene)
        assert not set(first.targets) & set(second.targets)
