"""The README's lines run as they stand: on the model that ships, and on tiny models with the classes that it names."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny.decoders import DECODERS
from tiny.processors import PROCESSORS
from transformers import AutoModelForImageTextToText, AutoProcessor

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def block(containing):
    """The one block of Python that contains a line."""
    found = [code for code in re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.S) if containing in code]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_the_lines_for_a_generative_model_print_shorter_caches(family, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((64, 48), 90).convert("RGB").save("photo.jpg")
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", lambda name: DECODERS[family].model())
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda name: PROCESSORS[family]())
    with torch.no_grad():
        exec(compile(block("AutoModelForImageTextToText"), "README.md", "exec"), {})
    lengths = [int(number) for number in re.findall(r"\d+", capsys.readouterr().out.rsplit("[", 1)[1])]
    assert len(lengths) == 6 and lengths[2] > lengths[3] == lengths[4] > lengths[5]


def test_the_quickstart_prints_what_the_readme_shows(tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "docs/images", tmp_path / "docs/images")
    monkeypatch.chdir(tmp_path)
    exec(compile(block("small:vilt"), "README.md", "exec"), {})
    shown = README.read_text("utf-8").split("```\norange\n")[1].split("```")[0]
    answer, *plan = capsys.readouterr().out.splitlines()
    assert answer == "orange"
    assert [line for line in shown.splitlines() if line != "..."] == plan[:1]
    assert Image.open("tokens.png").width > 300
