"""The benchmark of a CPU, on a tiny model."""

import sys
from dataclasses import replace

from benchmarks import full_size
from pumer.profiling import peak_memory
from pumer.utils.files import read_json


def test_a_file_for_each_model_with_the_limit_in_it(tiny_vilt, tmp_path, monkeypatch, capsys):
    case = full_size.CASES["vilt-small"]
    first = {"2,5,8": case.schedules["2,5,8"]}
    case = replace(case, model=str(tiny_vilt), schedules=first, batch_sizes=(1,), memory_batch=2, sliced_batch=4)
    monkeypatch.setitem(full_size.CASES, "vilt-small", case)
    monkeypatch.setattr(full_size, "peak_memory", peak_memory.measure)
    monkeypatch.setattr("pumer.profiling.benchmark.peak_memory", peak_memory.measure)
    given = ["full_size.py", "vilt-small", "--pairs=1", "--dtypes", "float32", f"--results={tmp_path}"]
    monkeypatch.setattr(sys, "argv", given)
    full_size.main()
    (path,) = tmp_path.iterdir()
    result = read_json(path)["float32"]
    assert path.name == "vilt-small-cpu.json"
    for point in result["speed"]["points"]:
        assert set(point["models"]) == {"unreduced", "2,5,8", "limit of 2,5,8", "ToMe 13", "transformers"}
    assert result["plan"]["limit of 2,5,8"]["tokens"] == result["plan"]["2,5,8"]["tokens"]
    sliced = result["sliced"]
    names = ["unreduced", "unreduced, slices of 8", "2,5,8", "2,5,8, slices of 8"]
    assert [*sliced["memory"], *sliced["failed"]] == names
    assert "limit of 2,5,8" in capsys.readouterr().out


def test_the_published_models_have_their_limits():
    for name in full_size.DEFAULT:
        case = full_size.CASES[name]
        assert all(f"limit of {schedule}" in case.reductions for schedule in case.schedules)
        assert full_size.settings(case, 1, "float32").batch_sizes == case.batch_sizes
