import sys
from pathlib import Path

from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "two_questions.py"


def test_one_drawing_per_question(script, tmp_path, monkeypatch):
    out = tmp_path / "tokens.png"
    monkeypatch.setattr(sys, "argv", ["two_questions", str(out), "--scene", "5"])
    script.main()
    assert Image.open(out).height > 1000  # each is some 600 high
    for scene in range(10):
        _, (first, second) = script.questions(scene)
        assert not set(first.targets) & set(second.targets)
