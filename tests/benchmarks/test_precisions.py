"""Accuracy and speed by precision, on tiny models: rows, differences, and what is not run again."""

import json
import shutil
import sys

import pytest

import pumer
from benchmarks import precisions
from pumer.tasks import TASKS, Example


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the script on folders; its results."""

    def run(*given):
        places = ("--work", str(tmp_path / "work"), "--results", str(tmp_path))
        monkeypatch.setattr(sys, "argv", ["precisions", *map(str, given), *places])
        precisions.main()
        return json.loads((tmp_path / "precisions-vilt-small-cpu.json").read_text())

    return run


def model(folder, source, root, reduction=None):
    shutil.copytree(source, folder)
    (folder / "run.json").write_text(json.dumps({"config": {"task": "vqav2", "data": {"root": str(root)}}}))
    if reduction is not None:
        pumer.save(pumer.patch(pumer.load(folder), reduction), folder)
    return folder


def test_rows_are_kept_and_not_run_again(tiny_vilt, tiny_vqa, tmp_path, run, monkeypatch, capsys):
    monkeypatch.setattr(precisions, "ROWS", {})
    folder = model(tmp_path / "model", tiny_vilt, tiny_vqa)
    (result,) = run(folder, "--limit", "6").values()
    found = result["rows"][precisions.PYTORCH]["accuracy"]
    assert result["questions"] == 6 and result["split"] == "val" and result["words"] == 7
    assert found["agreement"] == 1 and found["difference"] == {"mean": 0, "low": 0, "high": 0}
    monkeypatch.setattr(precisions, "predict", None)
    run(folder, "--limit", "6")
    shutil.rmtree(tmp_path / "work")
    run(folder, "--limit", "6")
    assert capsys.readouterr().out.count("vqav2-original") == 3
    with pytest.raises(SystemExit, match=r"questions=6, not 4.*--name"):
        run(folder, "--limit", "4")
    (tmp_path / "precisions-vilt-small-cpu.json").unlink()
    with pytest.raises(SystemExit, match=r"questions=6, not 4.*--work"):
        run(folder, "--limit", "4")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(SystemExit, match=r"model=.*--work"):
        run(folder, "--limit", "6")


def test_all_models_of_a_task_are_timed_in_turn(tiny_vilt, tiny_vqa, tmp_path, run, monkeypatch):
    calls, compare = [], precisions.compare
    monkeypatch.setattr(precisions, "ROWS", {"OpenVINO f32": ("openvino", "f32")})
    monkeypatch.setattr(precisions, "compare", lambda *given: calls.append(given) or compare(*given))
    reduced = model(tmp_path / "reduced", tiny_vilt, tiny_vqa, pumer.L2NormConfig(layers=(1,), prune_ratio=0.4))
    given = [reduced, model(tmp_path / "original", tiny_vilt, tiny_vqa), "--limit", "6"]
    before = run(*given)
    found = run(*given, "--speed", "--batches", "1", "3")
    assert len(calls) == 1 and len(calls[0][0]) == 4
    for name, result in found.items():
        assert result["rows"] == before[name]["rows"] and result["provenance"] == before[name]["provenance"]
        assert "--speed" in result["speed"]["provenance"]["command"]
        assert not any("--speed" in made["command"] for made in result["provenance"].values())
        assert result["speed"]["baseline"] == "vqav2-original, PyTorch f32"
        assert [point["batch"] for point in result["speed"]["points"]] == [1, 3]
        for point in result["speed"]["points"]:
            assert point["pairs"] >= 20 and set(point["models"]) == {precisions.PYTORCH, "OpenVINO f32"}
            for row in point["models"].values():
                assert row["seconds"].keys() == row["speedup"].keys() == {"median", "low", "high"}
    ups = {name: result["speed"]["points"][0]["models"][precisions.PYTORCH] for name, result in found.items()}
    assert ups["vqav2-original"]["speedup"] == {"median": 1, "low": 1, "high": 1}
    assert ups["vqav2-l2norm"]["speedup"]["low"] < ups["vqav2-l2norm"]["speedup"]["high"]


def test_retrieval_is_compared_by_direction():
    task = TASKS["flickr30k"](())
    queries = [Example(f"image {i}", (f"{i}.jpg",), "", (str(i), str(9)), source=str(i)) for i in range(4)]
    queries += [Example(f"caption {i}", (), "text", (str(i),), source=str(i)) for i in range(2)]
    own = ["0 1", "1 9", "3 2", "0 3", "0 1", "0 1"]
    other = ["9 0", "1 0", "2 3", "0 3", "1 0", "0 1"]
    found = precisions.compared(task, queries, other, own)
    assert [found[kind]["mean"] for kind in ("TR", "IR")] == [0.75, 0]
    assert [found[kind]["difference"]["mean"] for kind in ("TR", "IR")] == [0.25, -0.5]
    assert [found[kind]["agreement"] for kind in ("TR", "IR")] == [0.5, pytest.approx(0.5)]
