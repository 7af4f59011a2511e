"""The record of an exported model: what is missing or wrong is named."""

import re

import pytest
from tiny.exported import blank_record

from pumer.exporting.record import CHOOSING, GENERATING, arithmetic, read_record
from pumer.utils.errors import InputError
from pumer.utils.files import write_json


@pytest.mark.parametrize("generative", [False, True])
def test_every_entry_is_checked(generative, tmp_path):
    good = blank_record(generative)
    write_json(tmp_path / "export.json", good)
    assert read_record(tmp_path) == good
    for name in GENERATING if generative else CHOOSING:
        write_json(tmp_path / "export.json", good | {name: 0.5})
        with pytest.raises(InputError, match=rf"^{name} is 0\.5.*export\.json"):
            read_record(tmp_path)
        write_json(tmp_path / "export.json", {key: value for key, value in good.items() if key != name})
        with pytest.raises(InputError, match=rf"^{name} is missing"):
            read_record(tmp_path)


PROGRAM = {"file": "a.xml", "inputs": {"input_ids": [8]}, "outputs": ["logits"]}
PIXELS = {"resample": 3, "scale": 1, "mean": [0.5], "std": [0.5]}


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"text_lengths": []}, "text_lengths is []"),
        ({"text_lengths": [8, "a"]}, "text_lengths.1 is 'a'"),
        ({"image_size": True}, "image_size is True"),
        ({"labels": [None]}, "labels.0 is None"),
        ({"padding": [0]}, "padding is [0]"),
        ({"pixels": {}}, "pixels.resample is missing"),
        ({"pixels": PIXELS | {"mean": ["a"]}}, "pixels.mean.0 is 'a'"),
        ({"precision": "f64"}, "precision is 'f64'"),
        ({"programs": []}, "programs is []"),
        ({"programs": [3]}, "programs.0 is 3"),
        ({"programs": [PROGRAM, {}]}, "programs.1.file is missing"),
        ({"programs": [PROGRAM | {"inputs": []}]}, "programs.0.inputs is []"),
        ({"programs": [PROGRAM | {"inputs": {"input_ids": [None]}}]}, "programs.0.inputs.input_ids.0 is None"),
        ({"programs": [PROGRAM | {"outputs": []}]}, "programs.0.outputs is []"),
        *(
            ({"programs": [PROGRAM | {"file": file}]}, f"programs.0.file is {file!r}")
            for file in ("", ".", "..", "/etc/a.xml", "../a.xml", "a/b.xml")
        ),
    ],
)
def test_what_is_in_an_entry_is_checked(change, place, tmp_path):
    write_json(tmp_path / "export.json", blank_record(False) | {"programs": [PROGRAM], "pixels": PIXELS})
    read_record(tmp_path)
    write_json(tmp_path / "export.json", blank_record(False) | change)
    with pytest.raises(InputError, match=re.escape(place)):
        read_record(tmp_path)


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_only_openvino_runs_in_another_precision(kind, tmp_path):
    record = blank_record(False)
    assert arithmetic(tmp_path, record, "bf16") == "bf16"
    assert arithmetic(tmp_path, record | {"format": kind}, "f32") == "f32"
    with pytest.raises(InputError, match=f"bf16.*{kind}"):
        arithmetic(tmp_path, record | {"format": kind}, "bf16")


def test_whether_a_program_is_int8_is_decided_by_its_export(tmp_path):
    record = blank_record(False) | {"precision": "int8"}
    assert arithmetic(tmp_path, record, None) == arithmetic(tmp_path, record, "int8") == "int8"
    for asked, own in (("f32", "int8"), ("bf16", "int8"), ("int8", "f32")):
        with pytest.raises(InputError, match=f"{asked}.* in {own}"):
            arithmetic(tmp_path, record | {"precision": own}, asked)
