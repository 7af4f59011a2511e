"""The benchmark of a GPU on tiny models on the CPU: a file for each part, a table, and failures that stop nothing."""

import sys
import time
from dataclasses import replace

import pytest
import torch

import pumer
from benchmarks import deadline, gpu, rows
from pumer.profiling.timing import compare
from pumer.utils.files import read_json

PARTS = ("vilt", "meter", "training", "memory", "reduction", "inductor")
LIMIT = "limit of 2,5,8"


@pytest.fixture
def tiny(tiny_vilt, tiny_meter, monkeypatch):
    """The benchmark, with small models that are smaller still, and a compiler that compiles nothing."""
    cases = rows.CASES
    for name, folder in (("vilt-small", tiny_vilt), ("meter-small", tiny_meter)):
        case = cases[name]
        first = dict(list(case.schedules.items())[:1])
        batches = {"bfloat16": (1,), "float32": (2,)}
        monkeypatch.setitem(cases, name, replace(case, model=str(folder), schedules=first, gpu_batch_sizes=batches))
    monkeypatch.setattr(pumer, "compile", lambda model, backend: model)
    return gpu


def measured(folder, *parts, **settings):
    for part in parts:
        gpu.run(part, gpu.Settings("cpu", tiny=True, seconds=0, pairs=2, **settings), 60, folder, "abc")
    return {part: read_json(folder / f"{part}.json") for part in parts}


@pytest.mark.slow
def test_every_part_writes_a_file_and_the_table_is_last_and_short(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tiny, "_started", time.time)
    given = ["gpu.py", "--device=cpu", "--tiny", "--seconds=0", "--pairs=2", f"--results={tmp_path}"]
    monkeypatch.setattr(sys, "argv", given)
    tiny.main()
    printed = capsys.readouterr()
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(PARTS)
    for part in PARTS:
        result = read_json(tmp_path / f"{part}.json")
        assert result["stopped"] is None
        assert result["points"]
        assert {"command", "commit", "device", "versions", "dtype", "config"} <= set(result["provenance"])
        assert f"{part}: done" in printed.err
    lines = printed.out.splitlines()
    assert len(lines) <= 100
    assert len(printed.out) < 10_000
    for words in ("ViLT inference", "METER inference", "training step", "peak memory", "launches", "inductor"):
        assert any(words in line for line in lines)
    points = read_json(tmp_path / "vilt.json")["points"]
    assert [(point["dtype"], point["mode"], point["batch"]) for point in points] == [
        ("bfloat16", "eager", 1),
        ("bfloat16", "cudagraph", 1),
        ("float32", "eager", 2),
        ("float32", "cudagraph", 2),
    ]
    assert list(points[0]["models"]) == ["unreduced", "transformers", "2,5,8", LIMIT, "ToMe 13"]
    assert "transformers" not in points[1]["models"]
    assert points[0]["models"]["unreduced"]["speedup"]["median"] == 1
    assert points[0]["ideal"]["2,5,8"] > 1
    training = read_json(tmp_path / "training.json")["points"][0]["groups"]
    assert [list(group["models"]) for group in training.values()] == [["unreduced", "transformers", "2,5,8", LIMIT]] * 2


@pytest.mark.slow
def test_a_failing_row_leaves_the_others(tiny, tmp_path, monkeypatch):
    def compiled(model, backend):
        if pumer.reduction(model) == pumer.PuMerConfig.preset("vilt", "vqav2"):
            raise pumer.InputError("cannot be captured\nfor reasons")
        return model

    monkeypatch.setattr(pumer, "compile", compiled)
    result = measured(tmp_path, "vilt")
    eager, graphs = result["vilt"]["points"][:2]
    assert eager["failed"] == {}
    assert graphs["failed"] == {"2,5,8": "InputError: cannot be captured"}
    assert set(graphs["models"]) == set(eager["models"]) - {"2,5,8", "transformers"}
    text = tiny.gpu_table.table(result)
    assert " [1] InputError: cannot be captured" in text
    assert "[1]/" in text


@pytest.mark.slow
def test_without_the_baseline_there_is_no_speed_up(tiny, tmp_path, monkeypatch):
    def compiled(model, backend):
        if pumer.reduction(model) == pumer.NoReduction():
            raise RuntimeError("no")
        return model

    monkeypatch.setattr(pumer, "compile", compiled)
    result = measured(tmp_path, "vilt")
    models = result["vilt"]["points"][1]["models"]
    assert LIMIT in models
    assert not any("speedup" in figures for figures in models.values())
    assert "ms/" in tiny.gpu_table.table(result)


def test_a_compilation_that_takes_too_long_is_a_failing_row(tiny, tmp_path, monkeypatch):
    def compiled(model, backend):
        try:
            time.sleep(30)
        except TimeoutError as error:  # compilers wrap what they catch
            raise RuntimeError("worker failed") from error

    monkeypatch.setattr(pumer, "compile", compiled)
    point = measured(tmp_path, "inductor", compile_seconds=0.1)["inductor"]["points"][0]
    assert set(point["failed"].values()) == {"TimeoutError: not compiled within 0 s"}
    assert point["models"] == {}


def test_a_part_that_is_out_of_time_keeps_what_it_has(tiny, tmp_path, monkeypatch):
    def slowly(settings):
        yield {"batch": 1}
        time.sleep(30)

    monkeypatch.setitem(tiny.PARTS, "vilt", (slowly, 1))
    tiny.run("vilt", tiny.Settings("cpu"), 0.3, tmp_path)
    result = read_json(tmp_path / "vilt.json")
    assert result["points"] == [{"batch": 1}]
    assert result["stopped"] == "out of time after 0 s"


def test_a_part_that_fails_says_why(tiny, tmp_path, monkeypatch):
    def broken(settings):
        yield {"batch": 1}
        raise RuntimeError("CUDA error")

    monkeypatch.setitem(tiny.PARTS, "vilt", (broken, 1))
    tiny.run("vilt", tiny.Settings("cpu"), 60, tmp_path)
    assert read_json(tmp_path / "vilt.json")["stopped"] == "RuntimeError: CUDA error"


def test_time_limits_nest(tiny):
    with pytest.raises(KeyError), deadline.time_limit(0.1, KeyError()), deadline.time_limit(20, TimeoutError()):
        time.sleep(10)
    with pytest.raises(KeyError), deadline.time_limit(0.3, KeyError()):
        with pytest.raises(TimeoutError), deadline.time_limit(0.05, TimeoutError()):
            time.sleep(10)
        time.sleep(10)


def test_a_model_that_fails_half_way_leaves_the_comparison():
    calls = []

    def fails(x):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    failures = {}
    models = {"whole": lambda x: None, "fails": fails}
    result = compare(models, lambda batch: {"x": torch.zeros(batch)}, [4], pairs=3, warm_up=0, failures=failures)
    assert failures == {"fails": "out of memory"}
    assert list(result["points"][0]["models"]) == ["whole"]
