"""The record of an exported model: what is missing or wrong is named."""

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


@pytest.mark.parametrize("program", [3, {}, {"file": "a.xml", "inputs": [], "outputs": []}])
def test_programs_are_checked(program, tmp_path):
    write_json(tmp_path / "export.json", blank_record(False) | {"programs": [program]})
    with pytest.raises(InputError, match=r"^programs\.0\.(file|inputs) is"):
        read_record(tmp_path)


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_only_openvino_runs_in_another_precision(kind, tmp_path):
    record = blank_record(False)
    assert arithmetic(tmp_path, record, "bf16") == "bf16"
    assert arithmetic(tmp_path, record | {"format": kind}, "f32") == "f32"
    with pytest.raises(InputError, match=f"bf16.*{kind}"):
        arithmetic(tmp_path, record | {"format": kind}, "bf16")
