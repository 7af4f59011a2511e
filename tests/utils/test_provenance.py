import json
from dataclasses import dataclass
from pathlib import Path

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
    monkeypatch.setattr("sys.argv", ["/somewhere/benchmarks/full_size.py"])
    assert collect()["command"] == "full_size.py"
