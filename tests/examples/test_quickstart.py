import sys
from pathlib import Path

from PIL import Image

from pumer.evaluation.predict import Predictor

SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart.py"


def test_answers_and_a_drawing(script, tiny_vilt, tmp_path, monkeypatch, capsys):
    image, out = tmp_path / "photo.png", tmp_path / "tokens.png"
    Image.effect_noise((40, 32), 90).convert("RGB").save(image)
    question = "what colour is this?"
    monkeypatch.setattr(sys, "argv", ["quickstart", str(image), question, "--model", str(tiny_vilt), "--out", str(out)])
    script.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["unreduced:", Predictor(tiny_vilt)(image, question)]
    assert printed[1].startswith("reduced:") and printed[1].split()[1] in Predictor(tiny_vilt).task.labels
    assert Image.open(out).width > 1000
