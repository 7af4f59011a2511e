import json
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from pumer.utils.provenance import collect, device_name


@dataclass(frozen=True)
class Config:
    path: Path = Path("x")
    layers: tuple[int, ...] = (1, 2)


def test_holds_what_a_result_needs():
    record = json.loads(json.dumps(collect(Config(), dtype="bfloat16")))
    assert record["config"] == {"path": "x", "layers": [1, 2]}
    assert record["dtype"] == "bfloat16"
    assert record["device"] == device_name() != ""
    assert set(record["versions"]) == {"python", "pumer", "torch", "transformers"}
    assert {"command", "date", "commit", "threads"} <= record.keys()


def test_python_m_pumer_is_the_command(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/pumer/__main__.py", "train", "a b"])
    assert collect()["command"] == "pumer train 'a b'"
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/pumer", "--version"])
    assert collect()["command"] == "pumer --version"


@pytest.mark.parametrize(
    ("module", "file", "command"),
    [
        ("benchmarks.decoder", "benchmarks/decoder.py", "python -m benchmarks.decoder --pairs 3"),
        ("benchmarks.__main__", "benchmarks/__main__.py", "python -m benchmarks --pairs 3"),
        (None, "benchmarks/decoder.py", "decoder.py --pairs 3"),
    ],
)
def test_a_module_is_started_by_its_name(module, file, command, monkeypatch):
    spec = None if module is None else ModuleSpec(module, None, origin=f"/somewhere/{file}")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setattr("sys.argv", [f"/somewhere/{file}", "--pairs", "3"])
    assert collect()["command"] == command
