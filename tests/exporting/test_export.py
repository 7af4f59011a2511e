"""Exported models answer as the models they were made of, for every head, runtime and batch size."""

import json
import shutil
from functools import partial

import pytest
import tiny
import torch
from tiny import GRIDS, HEADS, TINY, answer
from typer.testing import CliRunner

import pumer
from pumer import NoReduction, PuMerConfig, ToMeConfig
from pumer.checkpoint import load_processor
from pumer.cli import app
from pumer.exporting import export as exporting
from pumer.utils.errors import InputError

CLOSE = partial(torch.testing.assert_close, atol=1e-4, rtol=0)
REDUCTIONS = {
    "none": NoReduction(),
    "pumer": PuMerConfig(layers=(0,), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3),
    "tome": ToMeConfig(layers=(0,), merge_count=6),
}
RUNTIMES = {"openvino": "openvino", "onnx": "onnxruntime", "torch": "torch"}
CASES = [
    (backbone, head, name, runtime)
    for backbone, head in HEADS
    if not head.endswith("Model")
    for name in REDUCTIONS
    for runtime in RUNTIMES
]
QUICK = {
    ("vilt", "ViltForQuestionAnswering", "pumer", "openvino"),
}
"""A few; all of them take minutes. ONNX Runtime: test_session.py."""


def build(backbone, head, name="pumer"):
    case = TINY[backbone]
    return pumer.patch(case.build(head, layers=1), case.fit(REDUCTIONS[name]))


@pytest.mark.parametrize(
    ("backbone", "head", "name", "runtime"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES],
)
def test_answers_as_the_model(backbone, head, name, runtime, tmp_path):
    pytest.importorskip(RUNTIMES[runtime])
    case, model = TINY[backbone], build(backbone, head, name)
    record = pumer.export(model, tmp_path / "out", runtime, text_length=10)
    assert [(row["words"], row["batch"], row["padded"]) for row in record["differences"]] == [
        (10, batch, padded) for batch in (1, 3, 8) for padded in (False, True)
    ]
    assert all(row["largest"] <= 1e-4 < row["logits"] for row in record["differences"])
    exported = pumer.ExportedModel(tmp_path / "out")
    for batch in (1, 3, 8):
        for grids in (3 * GRIDS, 9 * ((10, 6, 6),)):
            inputs = case.batch(grids[:batch], head, seed=batch, text=10, rows=6, columns=6)
            with torch.no_grad():
                expected = answer(model, inputs)
            CLOSE(torch.from_numpy(exported(**inputs).logits), expected)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A small ViLT and its exported self, as torch runs it, which is the quickest to make."""
    model, out = build("vilt", "ViltForQuestionAnswering"), tmp_path_factory.mktemp("exported") / "out"
    pumer.export(model, out, "torch", text_length=10)
    return model, pumer.ExportedModel(out)


def test_shorter_texts_and_smaller_images_are_padded(program):
    model, exported = program
    inputs = TINY["vilt"].batch(((6, 4, 3), (4, 2, 3)), text=6, rows=4, columns=3)
    CLOSE(torch.from_numpy(exported(**inputs).logits), answer(model, inputs).detach())
    whole = TINY["vilt"].batch(((6, 4, 3),) * 2)
    masked = exported(**whole).logits
    assert (exported(input_ids=whole["input_ids"], pixel_values=whole["pixel_values"]).logits == masked).all()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"input_ids": torch.ones(2, 11)}, "attention_mask"),
        ({"input_ids": torch.ones(2, 11), "attention_mask": torch.ones(2, 11)}, "input_ids"),
        ({"input_ids": torch.ones(1, 10), "attention_mask": torch.ones(1, 10)}, "1 of input_ids"),
        ({"pixel_values": torch.zeros(2, 3, 56, 48)}, "pixel_values"),
        ({"pixel_values": None}, "pixel_values"),
        ({"labels": torch.zeros(2)}, "labels"),
        ({"token_type_ids": torch.ones(2, 10)}, "token_type_ids"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(program, change, name):
    inputs = TINY["vilt"].batch(GRIDS[:2], text=10, rows=6, columns=6)
    with pytest.raises(InputError, match=name):
        program[1](**inputs | change)


def test_a_model_stays_as_it_is(program):
    model, exported = program
    assert pumer.reduction(model) == TINY["vilt"].fit(REDUCTIONS["pumer"])
    assert exported.record["reduction"]["method"] == "pumer"
    assert json.loads((exported.folder / "reduction.json").read_text()) == exported.record["reduction"]
    assert "| 8 | yes |" in (exported.folder / "README.md").read_text()


def test_a_program_that_differs_is_not_written(tmp_path, monkeypatch, program):
    monkeypatch.setattr(
        exporting, "write_program", lambda _, __, file, ___: shutil.copy(program[1].folder / file.name, file)
    )
    row = {"batch": 1, "padded": False, "largest": 2e-4, "logits": 1.0}
    monkeypatch.setattr(exporting, "differences", lambda *rest: [row])
    with pytest.raises(InputError, match=r"0\.0002") as error:
        pumer.export(build("vilt", "ViltForQuestionAnswering"), tmp_path / "out", "torch", text_length=10)
    assert "\n" not in str(error.value)
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")]


def test_a_processor_stays_as_it_is(tiny_vilt, tmp_path):
    processor = load_processor(tiny_vilt)
    edge = processor.image_processor.size["shortest_edge"]
    pumer.export(pumer.load(tiny_vilt), tmp_path / "out", "torch", image_size=2 * edge, processor=processor)
    assert processor.image_processor.size["shortest_edge"] == edge
    assert json.loads((tmp_path / "out" / "export.json").read_text())["image_size"] == 2 * edge


def test_models_without_a_head_are_refused(tmp_path):
    with pytest.raises(InputError, match="ViltModel has no head"):
        pumer.export(TINY["vilt"].build("ViltModel"), tmp_path / "out")


def test_a_folder_with_something_else_is_not_replaced(tmp_path, program):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="other files"):
        pumer.export(program[0], tmp_path, "torch", force=True)
    with pytest.raises(InputError, match="--force"):
        pumer.export(program[0], program[1].folder, "torch")


def test_precision_is_openvinos(tmp_path, tiny_vilt):
    result = CliRunner().invoke(app, ["export", str(tiny_vilt), str(tmp_path), "--to", "onnx", "--precision", "bf16"])
    assert result.exit_code == 2 and "precision bf16 is for openvino" in result.output


def test_every_head_is_covered():
    assert {case[:2] for case in CASES} | {(b, h) for b, h in HEADS if h.endswith("Model")} == set(tiny.HEADS)
