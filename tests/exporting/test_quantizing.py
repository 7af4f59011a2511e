"""Programs in int8: calibrated on training examples, near the model, and the same every time."""

import json
from collections import defaultdict

import numpy as np
import pytest
import torch
from tiny import GRIDS, TINY
from tiny.exported import blank_record
from typer.testing import CliRunner

import pumer
from pumer import PuMerConfig
from pumer.cli import app
from pumer.exporting.quantizing import calibration_inputs, quantize, same_choices, training_examples
from pumer.settings.export import ExportConfig
from pumer.tasks import TASKS
from pumer.utils.errors import InputError
from pumer.utils.files import write_json

INT8 = ("--precision", "int8")


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def random_inputs(size=8, seed=1):
    return TINY["vilt"].batch((4 * GRIDS)[:size], seed=seed, text=10, rows=6, columns=6)


@pytest.fixture(scope="module")
def model():
    case = TINY["vilt"]
    reduction = PuMerConfig(layers=(0,), prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3)
    return pumer.patch(case.build("ViltForQuestionAnswering", layers=1), case.fit(reduction))


@pytest.fixture(scope="module")
def quantised(model, tmp_path_factory):
    pytest.importorskip("nncf")
    out = tmp_path_factory.mktemp("quantised") / "out"
    pumer.export(model, out, precision="int8", calibration=[random_inputs(5), random_inputs(3, 2)], text_length=10)
    return out


def quantised_products(file):
    """Of each product of a program, by name, whether it is of integers."""
    import openvino

    products = [each for each in openvino.Core().read_model(file).get_ops() if each.get_type_name() == "MatMul"]
    return {
        each.get_friendly_name(): each.input_value(0).get_node().get_type_name() == "FakeQuantize" for each in products
    }


def write_choosing_program(file):
    """A layer, a choice of two of five tokens by scores, their products with each other, and a layer."""
    import openvino
    from openvino import opset13 as ops

    random = np.random.default_rng(0)

    def linear(x, name, width=8):
        weights = ops.constant(random.normal(size=(8, width)).astype(np.float32))
        return ops.matmul(x, weights, False, False, name=name)

    x = ops.parameter([-1, 5, 8], np.float32)
    states = linear(x, "first")
    best = ops.topk(ops.squeeze(linear(states, "scores", 1), -1), 2, 1, "max", "value").output(1)
    chosen = ops.gather(states, best, 1, batch_dims=1)
    similar = ops.matmul(chosen, chosen, False, True, name="similarities")
    result = linear(ops.matmul(similar, chosen, False, False, name="averages"), "last")
    openvino.save_model(openvino.Model([result], [x]), file, compress_to_fp16=False)


def test_layers_are_quantised_and_what_decides_is_not(tmp_path):
    pytest.importorskip("nncf")
    random, files = np.random.default_rng(1), [tmp_path / "one.xml", tmp_path / "two.xml"]
    examples = [[random.normal(size=(1, 5, 8)).astype(np.float32)] for _ in range(6)]
    for file in files:
        write_choosing_program(file)
        quantize(file, examples)
    expected = {"first": True, "scores": False, "similarities": False, "averages": False, "last": True}
    assert quantised_products(files[0]) == expected
    one, two = (file.with_suffix(".bin").read_bytes() for file in files)
    assert one == two


@pytest.mark.slow
def test_answers_mostly_as_the_model(quantised, model):
    record, inputs = json.loads((quantised / "export.json").read_text()), random_inputs(12, 3)
    exported = pumer.ExportedModel(quantised)
    with torch.no_grad():
        own = model(**inputs).logits
    logits = torch.from_numpy(exported(**inputs).logits)
    assert same_choices(own, logits) >= 0.8
    assert 1e-4 < (own - logits).abs().median() < 0.3 * own.abs().median()
    assert record["precision"] == exported.precision == "int8"
    about = {"task": None, "root": None, "split": None, "examples": 8}
    assert about.items() <= record["calibration"].items() and record["calibration"]["agreement"] >= 0.8
    assert "8 examples" in (quantised / "README.md").read_text()


@pytest.mark.slow
def test_the_same_program_twice(model, quantised, tmp_path):
    pumer.export(model, tmp_path / "f32", text_length=10)
    exported, examples = pumer.ExportedModel(tmp_path / "f32"), []
    for size, seed in ((5, 1), (3, 2)):
        inputs = random_inputs(size, seed)
        examples += [exported.arrays(**{name: x[row : row + 1] for name, x in inputs.items()}) for row in range(size)]
    quantize(tmp_path / "f32" / "program.xml", examples)
    inputs = random_inputs(12, 3)
    one, two = (pumer.ExportedModel(folder)(**inputs).logits for folder in (quantised, tmp_path / "f32"))
    assert (one == two).all()


@pytest.mark.slow
def test_evaluates_what_it_is_calibrated_for(tiny_vilt, tiny_vqa, tmp_path):
    pytest.importorskip("nncf")
    given = ("--calibration", tiny_vqa, "--calibration-examples", 4)
    result = invoke("export", tiny_vilt, tmp_path / "out", *INT8, *given)
    assert result.exit_code == 0 and "calibrated" in result.stdout and "nncf" not in result.stdout.lower()
    record = json.loads((tmp_path / "out" / "export.json").read_text())["calibration"]
    about = {"task": "vqav2", "root": str(tiny_vqa), "split": "train", "examples": 4}
    assert record == about | {"agreement": record["agreement"]}
    result = invoke("evaluate", tmp_path / "out", f"data.root={tiny_vqa}", f"output={tmp_path / 'result.json'}")
    assert result.exit_code == 0 and json.loads((tmp_path / "result.json").read_text())["dtype"] == "int8"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((*INT8, "--to", "onnx"), "precision int8"),
        (("--calibration", "."), "calibration=."),
        ((*INT8, "--calibration", "nowhere"), "calibration nowhere"),
        ((*INT8, "--calibration-examples", "0"), "calibration_examples"),
        (INT8, "--calibration"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments, named, tiny_vilt, tmp_path):
    result = invoke("export", tiny_vilt, tmp_path / "out", *arguments)
    assert result.exit_code == 2 and named in result.output and "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_task_is_refused(tiny_vilt, tiny_nlvr2):
    config = ExportConfig(model=str(tiny_vilt), out="out", precision="int8", calibration=tiny_nlvr2)
    with pytest.raises(InputError, match="vqav2"):
        calibration_inputs(config, pumer.load(tiny_vilt), object(), {}, 10)


def test_inputs_that_do_not_calibrate_are_refused(model, tmp_path):
    with pytest.raises(InputError, match="f32"):
        pumer.export(model, tmp_path / "out", calibration=[random_inputs()])
    with pytest.raises(InputError, match="no inputs"):
        pumer.export(model, tmp_path / "out", precision="int8", calibration=[])


def test_a_float_program_does_not_run_in_int8(tiny_vilt, tmp_path):
    write_json(tmp_path / "export.json", blank_record(False))
    with pytest.raises(InputError, match="int8"):
        pumer.ExportedModel(tmp_path, precision="int8")
    write_json(tmp_path / "export.json", blank_record(True))
    for precision in ("int8", "f64"):
        with pytest.raises(InputError, match=precision):
            pumer.ExportedGenerator(tmp_path, precision=precision)


def test_a_test_split_calibrates_nothing(model, tiny_vqa):
    config = ExportConfig(model="model", out="out", precision="int8", calibration=tiny_vqa)
    with pytest.raises(InputError, match="split test-dev"):
        calibration_inputs(config, model, object(), {"data": {"train": "test-dev"}}, 10)


def test_pairs_are_of_training_images_and_every_second_has_another_caption(tiny_flickr):
    task = TASKS["flickr30k"]
    pairs = {pair.id: pair for pair in task.read(tiny_flickr, "train")}
    made = training_examples(task, tiny_flickr, "train", 10)
    assert len(made) == 10 and [example.id for example in made] == sorted(example.id for example in made)
    captions = defaultdict(set)
    for pair in pairs.values():
        captions[pair.image_id].add(pair.text)
    assert [example.text in captions[pairs[example.id].image_id] for example in made] == 5 * [True, False]


def test_same_choices():
    random = np.random.default_rng(0)
    own, other = (torch.from_numpy(random.normal(size=(9, 3))) for _ in range(2))
    expected = np.mean([int(a.argmax()) == int(b.argmax()) for a, b in zip(own, other, strict=True)])
    assert same_choices(own, other) == pytest.approx(expected)
    a, b = own[:, :1], other[:, :1]
    expected = np.mean([(a[i] > a[j]).item() == (b[i] > b[j]).item() for i in range(9) for j in range(i)])
    assert same_choices(a, b) == pytest.approx(expected)
