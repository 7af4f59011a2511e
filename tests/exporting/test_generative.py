"""Exported generative models answer as the models they were made of, with every reduction and runtime."""

import csv
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.decoders import DECODERS, IMAGE
from tiny.processors import PROCESSORS
from typer.testing import CliRunner

import pumer
from pumer import DivPruneConfig, FastVConfig, PuMerConfig, PyramidDropConfig, Step, VisionZipConfig
from pumer.cli import app
from pumer.exporting import generative
from pumer.generative import answers, prompts
from pumer.utils.errors import InputError

FASTV = FastVConfig(layers=(1,), prune_ratio=0.5)
STEPS = tuple(Step(stack="decoder", layer=layer, prune_ratio=0.3, merge_ratio=0.2) for layer in (1, 3))
REDUCTIONS = {
    "none": None,
    "fastv": FASTV,
    "pyramiddrop": PyramidDropConfig(layers=(1, 3), prune_ratio=0.5),
    "pumer": PuMerConfig(schedule=STEPS),
    "divprune": DivPruneConfig(prune_ratio=0.5),
    "visionzip": VisionZipConfig(prune_ratio=0.5),
    "divprune, fastv": replace(FASTV, before=DivPruneConfig(prune_ratio=0.5)),
}
RUNTIMES = ("openvino", "torch")
QUESTIONS = ["what colour is this ?", "is it red"]


def build(name="fastv"):
    model = DECODERS["llava"].model()
    return model if REDUCTIONS[name] is None else pumer.patch(model, REDUCTIONS[name])


def noise(width, height):
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGES = [noise(50, 30), noise(33, 70)]


def asked(model, processor, length=6):
    processor.tokenizer.padding_side = "left"
    inputs = prompts(processor, [([image], text) for image, text in zip(IMAGES, QUESTIONS, strict=True)])
    return inputs, answers(model, processor, inputs, length)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model, its processor, and its exported self, as torch runs it, which is the quickest to make."""
    folder = tmp_path_factory.mktemp("generative")
    model, processor = build("divprune, fastv"), PROCESSORS["llava"]()
    record = pumer.export(model, folder / "out", "torch", text_length=12, processor=processor)
    assert [row["token"] for row in record["differences"]] == list(range(generative.NEW_TOKENS + 1))
    assert all(row["largest"] <= 1e-4 < row["logits"] for row in record["differences"])
    assert pumer.reduction(model) == REDUCTIONS["divprune, fastv"]
    return model, processor, folder / "out"


def test_answers_images_and_texts_as_the_model(exported):
    model, processor, out = exported
    inputs, expected = asked(model, processor)
    generator = pumer.ExportedGenerator(out)
    assert generator.answers(IMAGES, QUESTIONS, 6) == expected and any(expected)
    made = generator.inputs(IMAGES, QUESTIONS)
    for name, own in made.items():
        theirs = inputs[name].numpy()
        np.testing.assert_allclose(own[:, -theirs.shape[1] :] if own.ndim == 2 else own, theirs, atol=1e-5)


def test_a_prompt_gets_the_answer_that_it_gets_alone_padded_on_either_side(exported):
    model, processor, out = exported
    inputs, _ = asked(model, processor)
    generator = pumer.ExportedGenerator(out)
    whole = generator.generate(6, **inputs)
    for row in range(2):
        alone = {name: x[row : row + 1] for name, x in inputs.items()}
        assert generator.generate(6, **alone) == whole[row : row + 1]
    real = inputs["attention_mask"]
    right = {name: torch.stack([torch.cat([x[m > 0], x[m == 0]]) for x, m in zip(inputs[name], real, strict=True)])
             for name in ("input_ids", "attention_mask")}  # fmt: skip
    assert generator.generate(6, **{**inputs, **right}) == whole


def test_only_what_is_allowed_is_said_and_the_end_ends(exported):
    model, processor, out = exported
    inputs, _ = asked(model, processor)
    generator = pumer.ExportedGenerator(out)
    end = generator.record["end"][0]
    said = generator.generate(6, lambda row, said: [7 + row] if len(said) < 2 + row else [end], **inputs)
    assert said == [[7, 7], [8, 8, 8]]


def test_what_the_programs_were_not_made_for_is_refused(exported):
    model, processor, out = exported
    inputs, _ = asked(model, processor)
    generator = pumer.ExportedGenerator(out)
    with pytest.raises(InputError, match="14 tokens"):
        generator.answers(IMAGES[:1], ["is it " * 6])
    with pytest.raises(InputError, match="15 image tokens"):
        generator.generate(2, **{**inputs, "input_ids": inputs["input_ids"].scatter(1, torch.full((2, 1), 5), 7)})
    with pytest.raises(InputError, match=r"\(2, 3, 32, 30\)"):
        generator.generate(2, **{**inputs, "pixel_values": inputs["pixel_values"][..., 2:]})
    with pytest.raises(InputError, match="takes no image_sizes"):
        generator.generate(2, **inputs, image_sizes=inputs["input_ids"])
    with pytest.raises(InputError, match="needs pixel_values"):
        generator.generate(2, input_ids=inputs["input_ids"])
    with pytest.raises(InputError, match="max_new_tokens must be at least 1, not 0"):
        generator.generate(0, **inputs)
    with pytest.raises(InputError, match="no images"):
        generator.answers([], [])
    with pytest.raises(InputError, match="ExportedGenerator"):
        pumer.ExportedModel(out)


def test_commands_take_the_folder(exported, tmp_path):
    model, processor, out = exported
    saved, given = tmp_path / "saved", tmp_path / "questions.csv"
    pumer.save(model, saved)
    processor.save_pretrained(saved)
    for number, image in enumerate(IMAGES):
        image.save(tmp_path / f"{number}.png")
    with given.open("w") as file:
        csv.writer(file).writerows([("image", "question"), *((f"{n}.png", q) for n, q in enumerate(QUESTIONS))])
    found = []
    for name in (saved, out):
        answered = tmp_path / f"{name.name}.csv"
        settings = ["prompt=is it {question}", "max_new_tokens=5"]
        options = ["--questions", given, "--images", tmp_path, "--out", answered]
        done = CliRunner().invoke(app, list(map(str, ["predict", name, *settings, *options])))
        assert done.exit_code == 0, done.output
        found.append(answered.read_text())
    assert found[0] == found[1]
    done = CliRunner().invoke(app, ["benchmark", str(out), "pairs=1", "batch_sizes=[1]", "new_tokens=2"])
    assert done.exit_code == 0 and "further token" in done.stdout, done.output
    done = CliRunner().invoke(app, ["info", str(out)])
    assert done.exit_code == 0 and "image_tokens" in done.stdout, done.output


def test_torch_and_transformers_are_not_imported(exported):
    code = (
        "import sys; from pumer.exporting import generation_runtime; "
        "assert not {'torch', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_models_and_reductions_that_cannot_be_exported_are_refused(tmp_path):
    for family in ("qwen2_5_vl", "llava_next"):
        model = DECODERS[family].model()
        with pytest.raises(InputError, match=type(model).__name__):
            pumer.export(model, tmp_path / "out")
    model = pumer.patch(DECODERS["llava"].model(), pumer.CDPrunerConfig(prune_ratio=0.5))
    with pytest.raises(InputError, match="'cdpruner'"):
        pumer.export(model, tmp_path / "out")
    with pytest.raises(InputError, match="image_size=64"):
        pumer.export(build(), tmp_path / "out", image_size=64)
    with pytest.raises(InputError, match="precision=int8"):
        pumer.export(build(), tmp_path / "out", precision="int8")
    assert not (tmp_path / "out").exists()


def test_a_program_that_differs_is_not_written(tmp_path, monkeypatch):
    rows = [{"token": 3, "largest": 0.25, "logits": 1.0}]
    monkeypatch.setattr(generative, "differences", lambda *given: rows)
    monkeypatch.setattr(generative, "write_graph", lambda module, inputs, free, file, to: file.write_bytes(b""))
    monkeypatch.setattr(generative, "ExportedGenerator", lambda folder: None)
    with pytest.raises(InputError, match=r"0\.25"):
        pumer.export(build(), tmp_path / "out", "torch", text_length=12)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_every_reduction_and_runtime(name, runtime, tmp_path):
    pytest.importorskip(runtime)
    model, processor = build(name), PROCESSORS["llava"]()
    record = pumer.export(model, tmp_path / "out", runtime, text_length=12, processor=processor)
    assert all(row["largest"] <= 1e-4 < row["logits"] for row in record["differences"])
    assert pumer.ExportedGenerator(tmp_path / "out").answers(IMAGES, QUESTIONS, 6) == asked(model, processor)[1]
    assert record["image_tokens"] == 16 and record["image_token_id"] == IMAGE
