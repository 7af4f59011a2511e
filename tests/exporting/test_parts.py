"""Programs for several word counts, and METER's encoders and fusion, answer as the whole model does."""

import json
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tiny import GRID, GRIDS, TINY, answer
from typer.testing import CliRunner

import pumer
from pumer import PuMerConfig, Step
from pumer.checkpoint import load_processor
from pumer.cli import app
from pumer.evaluation import ranking
from pumer.exporting.parts import parts_of
from pumer.exporting.runners import _OPENERS
from pumer.exporting.weights import share_weights
from pumer.models.meter import MeterConfig, MeterForImageAndTextRetrieval, MeterForQuestionAnswering
from pumer.utils.errors import InputError

CLOSE = partial(torch.testing.assert_close, atol=1e-4, rtol=0)
METER = TINY["meter"]
HEADS = [head for head in METER.heads if head != "MeterModel"]
RUNTIMES = {"openvino": "openvino", "onnx": "onnxruntime", "torch": "torch"}
CONFIG = PuMerConfig(
    schedule=(
        Step(stack="vision", layer=0, merge_ratio=0.3),
        Step(layer=0, prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3),
    )
)
"""Merges patches in the vision encoder, and reduces both modalities after it."""


def check_parts(head, config):
    """The parts, run one after the other without any export, and the whole."""
    model, inputs = pumer.patch(METER.build(head), config), METER.batch(GRIDS, head)
    values = dict(inputs)
    with torch.no_grad():
        for part in parts_of(model, lambda length: dict(inputs), [10], apart=True):
            made = part.module(*(values[name] for name in part.inputs))
            values |= zip(part.outputs, made if isinstance(made, tuple) else (made,), strict=True)
        expected = answer(model, inputs)
    real = inputs["attention_mask"] > 0 if expected.ndim == 3 else slice(None)
    CLOSE(values["logits"][real], expected[real])


@pytest.mark.parametrize("head", HEADS)
def test_parts_compute_what_the_whole_does(head):
    check_parts(head, CONFIG)


@pytest.mark.parametrize("example", [each for name, each in GRID if name == "meter"], ids=lambda each: tiny.label(each))
def test_parts_of_every_method(example):
    check_parts(HEADS[0], example.config)


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_parts_for_two_word_counts_answer_as_the_model(head, runtime, tmp_path):
    pytest.importorskip(RUNTIMES[runtime])
    model = pumer.patch(METER.build(head, layers=1), CONFIG)
    record = pumer.export(model, tmp_path / "out", runtime, text_length=(6, 10), parts=True)
    assert all(row["largest"] <= 1e-4 < row["logits"] for row in record["differences"])
    exported = pumer.ExportedModel(tmp_path / "out")
    for grids in (GRIDS, ((4, 6, 6), (6, 6, 6))):  # the latter is padded to ten words, which six do for
        inputs = METER.batch(grids, head, text=10)
        expected, logits = answer(model, inputs).detach(), torch.from_numpy(exported(**inputs).logits)
        real = inputs["attention_mask"] > 0 if expected.ndim == 3 else slice(None)
        assert logits.shape == expected.shape
        CLOSE(logits[real], expected[real])


def saved(cls, tiny_meter, folder):
    """A reduced METER with a head, of one layer of each kind, and its processor."""
    config = MeterConfig.from_pretrained(tiny_meter)
    config.num_cross_modal_pairs = config.vision_config.num_hidden_layers = 1
    torch.manual_seed(0)
    model = pumer.patch(cls(config).eval(), CONFIG)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)  # biases and heads too
    pumer.save(model, folder)
    load_processor(tiny_meter).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def parted(tiny_meter, tmp_path_factory):
    """The tiny METER, reduced, in parts and for two word counts, as torch runs it, which is the quickest to make."""
    root = tmp_path_factory.mktemp("parted")
    model = saved(MeterForQuestionAnswering, tiny_meter, root / "model")
    record = pumer.export(root / "model", root / "out", "torch", text_length=[8, 5], parts=True)
    assert [each["file"] for each in record["programs"]] == [
        *("image.pt2", "text-5.pt2", "fusion-5.pt2", "text-8.pt2", "fusion-8.pt2")
    ]
    words = [row["words"] for row in record["differences"]]
    assert words == [5] * 6 + [8] * 6
    return model, pumer.ExportedModel(root / "out")


def images(count):
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (32, 40, 3), dtype=np.uint8)) for _ in range(count)]


TEXTS = ["is it", "what colour is this ?", "is it blue"]
"""Of 4, 7 and 5 words, with those that begin and end them."""


def test_the_smallest_program_that_fits_answers(parted, monkeypatch):
    model, exported = parted
    inputs = exported.inputs(images(3), TEXTS)
    assert inputs["attention_mask"].sum(axis=1).tolist() == [4, 7, 5]
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(x) for name, x in inputs.items()}).logits
    CLOSE(torch.from_numpy(exported(**inputs).logits), expected)
    monkeypatch.setitem(exported._programs, 8, [])
    short = {name: x[[0, 2]] for name, x in inputs.items()}  # still padded to 7
    CLOSE(torch.from_numpy(exported(**short).logits), expected[[0, 2]])
    assert exported.text_lengths == (5, 8)


def test_an_image_is_encoded_once(parted, monkeypatch):
    _, exported = parted
    runs, (encoder, *rest) = [], exported._programs[5]
    counted = encoder._replace(run=lambda arrays: runs.append(1) or encoder.run(arrays))
    monkeypatch.setattr(
        exported, "_programs", {length: [counted, *rest] for length in (5,)} | {8: exported._programs[8]}
    )
    shown = images(2)
    encoded = exported.encode_images(shown)
    asked = [(row, text) for row in (1, 0) for text in (TEXTS[0], TEXTS[2])]
    rows, texts = zip(*asked, strict=True)
    answers = exported.answers(encoded.select(rows), texts)
    assert len(encoded) == 2 and runs == [1]
    assert answers == exported.answers([shown[row] for row in rows], texts)
    words = {name: x for name, x in exported.inputs(shown, TEXTS[:2]).items() if name != "pixel_values"}
    both = exported(**encoded.arrays, **exported.encode(**words).arrays).logits
    CLOSE(both, exported(**exported.inputs(shown, TEXTS[:2])).logits)


def test_what_the_parts_cannot_take_is_refused(parted):
    _, exported = parted
    encoded = exported.encode_images(images(2))
    with pytest.raises(InputError, match=r"2 images but 3 texts; .*select"):
        exported.answers(encoded, TEXTS)
    words = exported.inputs(encoded, TEXTS[:2])
    with pytest.raises(InputError, match="1 of image_states"):
        exported(**words | {"image_states": encoded.arrays["image_states"][:1]})
    for lacking, needed in (("image_size", "pixel_values"), ("input_ids", "input_ids")):
        with pytest.raises(InputError, match=f"needs {needed}"):
            exported(**{name: x for name, x in words.items() if name != lacking})
    with pytest.raises(InputError, match="image_states is"):
        exported(**words | {"image_states": encoded.arrays["image_states"][:, 1:]})
    with pytest.raises(InputError, match="at least one"):
        exported.encode_images([])
    with pytest.raises(InputError, match="to encode"):
        exported.encode()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--parts"], "ViltForQuestionAnswering"),
        (["--text-length", "8,x"], "--text-length is '8,x'"),
        (["--text-length", "1,8"], "text_length"),
        (["--text-length", "8,99"], "99"),
    ],
)
def test_wrong_arguments_end_in_one_line(options, named, tiny_vilt, tmp_path):
    result = CliRunner().invoke(app, ["export", str(tiny_vilt), str(tmp_path / "out"), *options])
    assert result.exit_code == 2 and named in result.output and result.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- weights


def in_openvino(file, own):
    """A program that adds a large constant and one of its own."""
    openvino = pytest.importorskip("openvino")
    from openvino import opset13 as op

    x = op.parameter([-1, 4096], np.float32, name="x")
    sum_ = op.add(op.add(x, op.constant(np.arange(4096, dtype=np.float32)[None])), op.constant(own))
    openvino.save_model(openvino.Model([sum_], [x]), file, compress_to_fp16=False)


def in_onnx(file, own):
    """The same."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    shape = ["B", 4096]
    large = numpy_helper.from_array(np.arange(4096, dtype=np.float32)[None], "large")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "large"], ["y"]), helper.make_node("Add", ["y", "own"], ["z"])],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, shape)],
        [large, numpy_helper.from_array(own, "own")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(file))


@pytest.mark.parametrize(
    ("runtime", "suffix", "write"), [("openvino", ".xml", in_openvino), ("onnx", ".onnx", in_onnx)]
)
def test_programs_share_their_weights(runtime, suffix, write, tmp_path):
    random = np.random.default_rng(0)
    own = [random.normal(size=(1, 4096)).astype(np.float32) for _ in range(2)]
    files = [tmp_path / f"program-{number}{suffix}" for number in range(2)]
    for file, constant in zip(files, own, strict=True):
        write(file, constant)
    share_weights(files, runtime)
    assert {path.name for path in tmp_path.iterdir()} == {*(file.name for file in files), "weights.bin"}
    assert (tmp_path / "weights.bin").stat().st_size == 3 * 4096 * 4
    x = random.normal(size=(2, 4096)).astype(np.float32)
    for file, constant in zip(files, own, strict=True):
        (sums,) = _OPENERS[runtime](file, "f32", 1)([x])
        np.testing.assert_allclose(sums, x + np.arange(4096) + constant, rtol=1e-5)


# ---------------------------------------------------------------- retrieval

KILLED = """
import os, signal, sys
from pumer.cli import app
from pumer.evaluation import ranking
fill, calls = ranking._fill_block, []
def killed(*given):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return fill(*given)
ranking._fill_block = killed
app(sys.argv[1:])
"""
"""`pumer`, which is killed in the third block of images and captions."""


@pytest.fixture(scope="module")
def retrieval(tiny_meter, tmp_path_factory):
    """A reduced METER for retrieval, and its exported self in parts."""
    root = tmp_path_factory.mktemp("retrieval")
    saved(MeterForImageAndTextRetrieval, tiny_meter, root / "model")
    pumer.export(root / "model", root / "out", "torch", parts=True)
    return root / "model", root / "out"


def evaluated(model, folder, data):
    """The command that ranks 8 images and 40 captions, in 5 blocks, and keeps what it makes in a folder."""
    settings = ["task=flickr30k", f"data.root={data}", "split=test", "batch_size=8"]
    return [
        "evaluate",
        *map(str, (model, *settings)),
        f"scores={folder}",
        f"output={folder}.json",
        f"submission={folder}-found.json",
    ]


def test_retrieval_encodes_each_image_once_and_ranks_as_pytorch(retrieval, tiny_flickr, tmp_path, monkeypatch):
    model, out = retrieval
    encode, sizes = pumer.ExportedModel.encode, []

    def counted(self, **inputs):
        sizes.append((*inputs, len(next(iter(inputs.values())))))
        return encode(self, **inputs)

    monkeypatch.setattr(pumer.ExportedModel, "encode", counted)
    found = []
    for name, folder in (("model", model), ("exported", out)):
        app(evaluated(folder, tmp_path / name, tiny_flickr), standalone_mode=False)
        result = json.loads((tmp_path / f"{name}.json").read_text())
        found.append((np.load(tmp_path / name / "scores.npy"), result["accuracy"], result["answered"]))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-4, rtol=0)
    assert found[0][1:] == found[1][1:]
    assert found[0][0].std() > 0.01
    shown = [each[-1] for each in sizes if each[0] == "pixel_values"]
    assert sum(shown) == 8 and sum(each[-1] for each in sizes) == 8 + 40


@pytest.mark.slow
def test_retrieval_goes_on_after_kill_9(retrieval, tiny_flickr, tmp_path, monkeypatch):
    _, out = retrieval
    app(evaluated(out, tmp_path / "whole", tiny_flickr), standalone_mode=False)
    again = evaluated(out, tmp_path / "again", tiny_flickr)
    assert subprocess.run([sys.executable, "-c", KILLED, *again], check=False).returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("again*.json"))
    fill, calls = ranking._fill_block, []
    monkeypatch.setattr(ranking, "_fill_block", lambda *given: calls.append(1) or fill(*given))
    app(again, standalone_mode=False)
    assert len(calls) == 3  # of 5
    for name in ("/scores.npy", "-found.json"):
        assert (tmp_path / f"again{name}").read_bytes() == (tmp_path / f"whole{name}").read_bytes()
