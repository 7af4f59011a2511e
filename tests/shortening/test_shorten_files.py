"""Shortened prompts in files: another process answers them without the images."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from shortening.families import HALF, OLD, WITH_BEAMS, able, batch, check, each_of, generated, ids_left, model_of
from tiny.decoders import SIDE, VIDEO

from pumer import InputError
from pumer.prompts import read_prompts, shorten, write_prompts

ANSWER = """
import sys
import torch
from tiny.decoders import DECODERS
from pumer.prompts import read_prompts
for family, path in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    model = DECODERS[family].model().double()
    print(model.generate(**read_prompts(path), max_new_tokens=3, do_sample=False)[:, -3:].tolist())
"""


@each_of(*WITH_BEAMS)
def test_what_is_read_is_what_was_written(family, tmp_path):
    model, path = model_of(family), tmp_path / "prompts.safetensors"
    short = shorten(model, batch(family), HALF)
    expected = generated(model, shorten(model, batch(family), HALF))
    write_prompts(path, short)
    found = read_prompts(path)
    assert found.keys() == short.keys()
    for name, x in found.items():
        assert name == "mm_encoder_outputs" or torch.equal(x, short[name])
    check(generated(model, found), expected, tolerance=0)
    check(generated(model, read_prompts(path), num_beams=2)[:1] * 2, generated(model, short, num_beams=2)[:1] * 2)
    assert [file.name for file in tmp_path.iterdir()] == ["prompts.safetensors"]


def test_another_process_answers(tmp_path):
    arguments, expected = [], []
    for family in able("llava", "qwen3_vl"):
        model, path = model_of(family), tmp_path / f"{family}.safetensors"
        short = shorten(model, batch(family), HALF)
        write_prompts(path, short)
        arguments += [family, str(path)]
        expected.append(str(generated(model, short)[0].tolist()))
    paths = os.pathsep.join(path for path in sys.path if path)
    command, environment = [sys.executable, "-c", ANSWER, *arguments], {**os.environ, "PYTHONPATH": paths}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.splitlines() == expected


@pytest.mark.skipif(OLD, reason="this transformers adds the end of a video to its features elsewhere")
@each_of("llava_onevision")
def test_videos_in_a_file(family, tmp_path):
    model, path = model_of(family), tmp_path / "prompts.safetensors"
    ids = torch.tensor([[3, *[VIDEO] * 9, 4, 5, 6]])
    pixels = torch.randn(1, 2, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.manual_seed(0))
    short = shorten(model, {"input_ids": ids, "pixel_values_videos": pixels}, HALF)
    write_prompts(path, short)
    check(generated(model, read_prompts(path)), generated(model, short), tolerance=0)


def test_what_is_no_tensor_is_refused(tmp_path):
    short = {**shorten(model_of("llava"), batch("llava"), HALF), "max_new_tokens": 3}
    with pytest.raises(InputError, match="max_new_tokens"):
        write_prompts(tmp_path / "prompts.safetensors", short)
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "prompts.safetensors"
    with pytest.raises(InputError, match="prompts"):
        read_prompts(path)
    path.write_text("nothing of the kind")
    with pytest.raises(InputError, match="prompts"):
        read_prompts(path)
    save_file({"inputs.input_ids": torch.zeros(1, 2)}, path)
    with pytest.raises(InputError, match="write_prompts"):
        read_prompts(path)


@pytest.mark.skipif(OLD, reason="this transformers needs the embeddings of all tokens")
def test_the_file_holds_no_more_than_what_is_left(tmp_path):
    """Features are cut out of what the encoder gave; no file holds all of that."""
    path = tmp_path / "prompts.safetensors"
    write_prompts(path, shorten(model_of("llava"), batch("llava"), HALF))
    images = int((ids_left("llava", batch("llava"), HALF) == model_of("llava").config.image_token_id).sum())
    features = images * 32 * 8
    assert path.stat().st_size < features + 8192
