import sys
from pathlib import Path

from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "two_questions.py"


def test_one_drawing_per_question(script, tmp_path, monkeypatch):
    out = tmp_path / "tokens.png"
    monkeypatch.setattr(sys, "argv", ["two_questions", str(out)])
    script.main()
    assert Image.open(out).size[0] == script.WIDTH and Image.open(out).height > 1000  # each is some 600 high
    assert out.stat().st_size < 200_000
