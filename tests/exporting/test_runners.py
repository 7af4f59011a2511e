"""Opening programs: nothing is reported to anyone, and nothing in an archive runs as it is read."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from contextlib import suppress

import pytest
import torch

from pumer.exporting import runners
from pumer.exporting.runners import open_program
from pumer.utils.errors import InputError

WRITTEN_AND_OPENED = """
import sys
from pathlib import Path
import numpy as np
import torch
from pumer.exporting.programs import write_program
from pumer.exporting.quantizing import quantize
from pumer.exporting.runners import open_program
class Layer(torch.nn.Linear):
    def forward(self, *inputs):
        return super().forward(*inputs)
file = Path(sys.argv[1], "program.xml")
write_program(Layer(4, 2), {"x": torch.rand(2, 4)}, file, "openvino")
quantize(file, [[np.ones((1, 4), np.float32)]])
open_program(file, "openvino", "int8", 1)([np.ones((1, 4), np.float32)])
"""


def test_openvino_and_nncf_report_to_nobody(tmp_path):
    pytest.importorskip("nncf")
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    command = [sys.executable, "-c", WRITTEN_AND_OPENED, str(tmp_path)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert (tmp_path / "program.xml").is_file() and not (tmp_path / "intel").exists()


class Harmful:
    """Makes a folder as it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture
def archive(tmp_path):
    """A program of torch."""
    torch.export.save(torch.export.export(torch.nn.Linear(4, 2), (torch.rand(2, 4),)), tmp_path / "good.pt2")
    return tmp_path / "good.pt2"


@pytest.mark.parametrize("part", ["sample_inputs/model.pt", "constants/opaque_obj_0"])
def test_an_archive_runs_no_code_as_it_is_read(archive, tmp_path, part, monkeypatch):
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    assert open_program(archive, "torch", "f32", None)
    file, hit = tmp_path / "bad.pt2", tmp_path / "hit"
    harmful = tmp_path / "harmful"
    torch.save((Harmful(hit),), harmful)
    changed = harmful.read_bytes() if part.endswith(".pt") else pickle.dumps(Harmful(hit))
    about = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(file, "w") as new:
        parts = {name: old.read(name) for name in old.namelist()}
        root = next(iter(parts)).partition("/")[0]
        parts[f"{root}/data/{part}"] = changed
        if "opaque" in part:
            parts[f"{root}/data/constants/model_constants_config.json"] = json.dumps({"config": {"a": about}}).encode()
        for name, content in parts.items():
            new.writestr(name, content)
    with pytest.raises(InputError, match=r"bad\.pt2"):
        open_program(file, "torch", "f32", None)
    assert not hit.exists() and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    with suppress(Exception):
        torch.export.load(file)
    assert hit.is_dir()  # it does as torch reads it


@pytest.mark.parametrize(("variable", "threads"), [("3", 3), ("", None), ("0", None), ("4,2", None)])
def test_threads_are_those_of_the_environment_unless_given(variable, threads, monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setitem(runners._OPENERS, "onnx", lambda file, precision, threads: threads)
    assert open_program(tmp_path, "onnx", "f32", None) == threads
    assert open_program(tmp_path, "onnx", "f32", 2) == 2
