"""Commands on exported folders, and the runtime without torch."""

import csv
import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import pumer
from pumer.cli import app
from pumer.evaluation import evaluate
from pumer.exporting.generation_runtime import cropped
from pumer.exporting.record import CHOOSING
from pumer.exporting.session import ExportedSession, Program
from pumer.tasks import Example
from pumer.tasks.base import model_inputs
from pumer.tasks.fingerprint import weights_fingerprint
from pumer.tasks.session import Session
from pumer.utils.errors import InputError
from pumer.utils.files import write_json


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def exported(tiny_vilt, tmp_path_factory):
    """The tiny ViLT as an ONNX program."""
    pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("exported") / "out"
    assert "1e" in invoke("export", tiny_vilt, out, "--to", "onnx") or out.is_dir()
    return out


@pytest.fixture
def images(tmp_path):
    random = np.random.default_rng(0)
    files = [tmp_path / "wide.png", tmp_path / "high.png"]
    for file, size in zip(files, ((30, 50, 3), (70, 40, 3)), strict=True):
        Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(file)
    return files


def test_pads_images_as_the_training_of_its_model_did(exported, tiny_vilt, images, tmp_path):
    padding = tmp_path / "padding"
    shutil.copytree(exported, padding)
    record = json.loads((padding / "export.json").read_text())
    write_json(padding / "export.json", record | {"pixels": record["pixels"] | {"pad": True}})
    trained = Session.open(tiny_vilt, resize="pad")
    expected = trained.inputs.pixels(images)["pixel_values"].numpy()
    seen = pumer.ExportedModel(padding).inputs(images, QUESTIONS)["pixel_values"]
    np.testing.assert_allclose(seen, expected, atol=1e-6)
    assert ExportedSession.load(padding).inputs.pixels.resize == "pad"
    with pytest.raises(InputError, match="resize=square"):
        ExportedSession.load(padding, resize="square")


QUESTIONS = ["what colour is this?", "is it blue"]


def test_evaluates_as_the_model(exported, tiny_vilt, tiny_vqa, tmp_path):
    rows = []
    for name, model in (("model", tiny_vilt), ("exported", exported)):
        per_example, result = tmp_path / f"{name}.json", tmp_path / f"{name}-result.json"
        invoke("evaluate", model, f"data.root={tiny_vqa}", f"output={result}", f"per_example={per_example}")
        rows.append((json.loads(result.read_text())["accuracy"], json.loads(per_example.read_text())["examples"]))
    assert rows[0] == rows[1]


def test_predicts_as_the_model(exported, tiny_vilt, images, tmp_path):
    questions, answers = tmp_path / "questions.csv", []
    with questions.open("w", newline="") as file:
        csv.writer(file).writerows([["image", "question"], *zip(map(str, images), QUESTIONS, strict=True)])
    for name, model in (("model.csv", tiny_vilt), ("exported.csv", exported)):
        invoke("predict", model, "--questions", questions, "--out", tmp_path / name)
        answers.append((tmp_path / name).read_text())
    assert answers[0] == answers[1]


KILLED = """
import os, signal, sys
from pumer.cli import app
from pumer.evaluation import evaluate
choose, calls = evaluate._choose, []
def killed(*given):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return choose(*given)
evaluate._choose = killed
app(sys.argv[1:])
"""
"""`pumer`, which is killed in the second batch."""


@pytest.mark.slow
def test_predict_goes_on_after_kill_9(exported, images, tmp_path, monkeypatch):
    questions, rows = tmp_path / "questions.csv", [[image, text] for image in images for text in QUESTIONS]
    with questions.open("w", newline="") as file:
        csv.writer(file).writerows([["image", "question"], *rows])
    command = ["predict", exported, "--questions", questions, "batch_size=1", "--out"]
    invoke(*command, tmp_path / "whole.csv")
    again = [*map(str, command), str(tmp_path / "again.csv")]
    assert subprocess.run([sys.executable, "-c", KILLED, *again], check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "again.csv").exists()
    choose, calls = evaluate._choose, []
    monkeypatch.setattr(evaluate, "_choose", lambda *given: calls.append(1) or choose(*given))
    invoke(*again)
    assert len(calls) == 3  # of 4
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert [path.name for path in tmp_path.glob("*again*")] == ["again.csv"]


def test_benchmarks(exported, tmp_path):
    output = tmp_path / "speed.json"
    invoke("benchmark", exported, "pairs=2", "batch_sizes=[1,2]", f"output={output}")
    points = json.loads(output.read_text())["speed"]["points"]
    assert [point["batch"] for point in points] == [1, 2]
    with pytest.raises(InputError, match="compile"):
        from pumer.exporting.benchmark import run
        from pumer.settings.benchmark import BenchmarkConfig

        run(BenchmarkConfig(model=str(exported), compile=True))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"image_size": 64}, "image_size=64"),
        ({"resize": "aspect"}, "resize=aspect"),
        ({"reduction": "pumer"}, "reduction=pumer"),
        ({"text_length": 13}, "12"),
        ({"task": "nlvr2"}, "nlvr2"),
    ],
)
def test_what_the_program_cannot_change_is_refused(exported, settings, named):
    with pytest.raises(InputError, match=named):
        ExportedSession.load(exported, **settings)


def test_one_program_encodes_nothing_apart(exported, images):
    with pytest.raises(InputError, match="--parts"):
        pumer.ExportedModel(exported).encode_images(images)


def test_its_hash_stands_for_weights_and_precision(exported):
    session = ExportedSession.load(exported)
    assert list(session.model.state_dict()) == ["digest"]
    assert session.reduction["method"] == "none"
    half = pumer.ExportedModel(exported)
    half.precision = "bf16"  # as of OpenVINO, which alone can be asked for it
    assert weights_fingerprint(Program(half)) != weights_fingerprint(session.model)


def test_reads_images_and_texts_as_a_session_does(exported, tiny_vilt, images):
    session, model = Session.open(tiny_vilt), pumer.ExportedModel(exported)
    expected = model_inputs(
        [Example(i, (f,), q) for i, (f, q) in enumerate(zip(images, QUESTIONS, strict=True))], session.inputs
    )
    given = model.inputs(images, QUESTIONS)
    T = expected["input_ids"].shape[1]
    assert (given["input_ids"][:, :T] == expected["input_ids"].numpy()).all()
    assert (given["attention_mask"][:, :T] == expected["attention_mask"].numpy()).all()
    torch.testing.assert_close(torch.from_numpy(given["pixel_values"]), expected["pixel_values"], atol=1e-6, rtol=0)
    assert model.answers(images, QUESTIONS) == pumer.Predictor(tiny_vilt).answers(
        [Example(0, (images[0],), QUESTIONS[0]), Example(1, (images[1],), QUESTIONS[1])]
    )


@pytest.fixture
def kinds(tmp_path):
    """The same ramp in kinds of files that Pillow reads in modes of their own."""
    ramp = np.tile(np.arange(0, 240, 5, np.uint8), (40, 1))
    grey = Image.fromarray(ramp)
    kinds = {
        "16-bits.png": Image.fromarray(ramp.astype(np.uint16) << 8),
        "floats.tif": Image.fromarray((ramp / 255).astype(np.float32)),
        "palette.gif": grey.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE),
        "cmyk.tif": grey.convert("RGB").convert("CMYK"),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
    return ramp, [tmp_path / name for name in kinds]


def test_reads_every_kind_of_image_as_a_session_does(exported, tiny_vilt, kinds):
    ramp, files = kinds
    inputs, texts = Session.open(tiny_vilt).inputs, ["what"] * len(files)
    expected = model_inputs([Example(i, (file,), "what") for i, file in enumerate(files)], inputs)["pixel_values"]
    model = pumer.ExportedModel(exported)
    pixels = model.inputs(files, texts)["pixel_values"]
    torch.testing.assert_close(torch.from_numpy(pixels), expected, atol=1e-6, rtol=0)
    plain = model.inputs([ramp] * len(files), texts)["pixel_values"]
    np.testing.assert_allclose(pixels, plain, atol=0.02)


def test_generators_read_images_as_well(kinds):
    ramp, (file, *_) = kinds
    about = {"edge": 16, "crop": [16, 16], "resample": 3, "scale": 1 / 255, "mean": [0.5] * 3, "std": [0.5] * 3}
    assert (cropped(file, about) == cropped(ramp, about)).all()


def test_files_that_are_no_images_are_refused(exported, tmp_path):
    model, drawing = pumer.ExportedModel(exported), tmp_path / "drawing.eps"
    Image.new("RGB", (8, 8)).save(drawing)
    for image, named in ((drawing, "known format"), (tmp_path, "directory"), (None, "NoneType")):
        with pytest.raises(InputError, match=named):
            model.answers([image], ["what"])


def test_runs_without_torch(exported, images):
    code = f"""
import sys
import pumer
model = pumer.ExportedModel({str(exported)!r})
print(model.answers([{str(images[0])!r}], ["is it blue"])[0])
assert not {{"torch", "transformers", "pydantic"}} & sys.modules.keys()
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert [answer] == pumer.ExportedModel(exported).answers([images[0]], ["is it blue"])


def test_a_broken_folder_ends_in_one_line(exported, tmp_path):
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "program.onnx").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"program\.onnx"):
        pumer.ExportedModel(tmp_path)
    record = json.loads((tmp_path / "export.json").read_text())
    for name in CHOOSING:
        write_json(tmp_path / "export.json", {key: value for key, value in record.items() if key != name})
        with pytest.raises(InputError, match=name):
            pumer.ExportedModel(tmp_path)
    (tmp_path / "export.json").write_text('{"version": 1}')
    with pytest.raises(InputError, match="version 1"):
        pumer.ExportedModel(tmp_path)
