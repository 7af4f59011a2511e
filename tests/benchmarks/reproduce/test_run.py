import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.reproduce.run import Reproduction, estimate, run
from benchmarks.reproduce.settings import ReproduceConfig
from pumer.utils.errors import InputError
from pumer.utils.files import read_json
from pumer.utils.locks import only_one
from pumer.utils.shipped import PACKAGE


def names(reproduction, *kinds):
    """Names of the finished steps of some kinds; of all without one."""
    return {name for name in reproduction.done() if not kinds or name.split("/")[0] in kinds}


def changed_recipes(config, tmp_path, kind, **changes):
    """The same reproduction with a recipe of ViLT's VQAv2 changed."""
    recipes = shutil.copytree(PACKAGE / "recipes", tmp_path / "recipes")
    path = recipes / "vilt" / f"world-vqav2-{kind}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    return dataclasses.replace(config, recipes=recipes)


def test_every_step_is_done_and_told(reproduced):
    reproduction, printed = reproduced
    assert names(reproduction) == {step.name for step in reproduction.steps}
    assert printed.count("\n") >= len(reproduction.steps)
    assert f"{len(reproduction.steps)}/{len(reproduction.steps)} " in printed


def test_what_is_done_is_not_done_again(reproduced, config, run_nothing):
    again = Reproduction(config, run_nothing)
    assert again.run(Console(file=io.StringIO())) == {}


def test_another_recipe_of_the_reduced_model_leaves_the_original_alone(reproduced, config, tmp_path, run_nothing):
    before = names(reproduced[0])
    changed = Reproduction(changed_recipes(config, tmp_path, "pumer", epochs=7), run_nothing)
    gone = before - names(changed)
    assert gone == {name for name in before if "/pumer-" in name and "-untuned" not in name}


def test_another_recipe_of_the_original_changes_all_that_follows(reproduced, config, tmp_path, run_nothing):
    changed = Reproduction(changed_recipes(config, tmp_path, "original", epochs=7), run_nothing)
    assert names(changed) == set()


def test_other_data_and_another_start_change_everything(reproduced, config, tmp_path, run_nothing):
    data = shutil.copytree(config.data, tmp_path / "data")
    assert names(Reproduction(dataclasses.replace(config, data=data), run_nothing)) == names(reproduced[0])
    annotations = data / "vqav2" / "v2_mscoco_val2014_annotations.json"
    annotations.write_text(annotations.read_text() + "\n")
    assert names(Reproduction(dataclasses.replace(config, data=data), run_nothing)) == set()
    start = Path(shutil.copytree(config.starts["vilt"], tmp_path / "start"))
    (start / "model.safetensors").write_bytes(b"other")
    assert names(Reproduction(dataclasses.replace(config, starts={"vilt": str(start)}), run_nothing)) == set()


def test_an_interrupted_step_is_the_only_one_left(reproduced, config, tmp_path, run_nothing):
    out = Path(shutil.copytree(config.out, tmp_path / "out"))
    step = next(step for step in reproduced[0].steps if step.name.startswith("test/"))
    record = out / "steps" / f"{step.name}.json"
    record.write_text(json.dumps(read_json(record) | {"done": False}))  # as a kill leaves it
    again = Reproduction(dataclasses.replace(config, out=out), run_nothing)
    assert {each.name for each in again.steps} - names(again) == {step.name}


def test_the_report_pools_seeds_and_names_no_folder_of_this_machine(reproduced, config, tmp_path):
    reproduction, _ = reproduced
    reproduction.config = dataclasses.replace(config, results=tmp_path / "results")
    results = reproduction.report()
    (table,) = results["tables"]
    original, pumer = table["rows"]
    tests = {
        seed: read_json(config.out / "tests" / "vilt" / "vqav2" / "original" / f"seed{seed}.result.json")
        for seed in (0, 1)
    }
    mean = sum(test["accuracy"]["mean"] for test in tests.values()) / 2
    assert original["tuned"]["accuracy"]["mean"] == pytest.approx(mean)
    assert pumer["tuned"]["seeds"] == 2
    assert pumer["tuned"]["questions"] == 12
    assert pumer["tuned"]["difference"]["mean"] == pytest.approx(pumer["tuned"]["accuracy"]["mean"] - mean)
    assert pumer["cost"]["macs_fewer"] > 1
    assert 0 < pumer["cost"]["memory"] < 2
    assert "text_length=12" in pumer["cost"]["command"]  # questions are longer than the model can take
    assert pumer["untuned"]["seeds"] == 2
    assert [run["steps"] for run in pumer["training"]] == [2, 2]
    for file in (tmp_path / "results").iterdir():
        text = file.read_bytes().decode(errors="replace")
        assert str(config.out) not in text
        assert str(config.data) not in text
    assert (config.out / "report.md").read_text() == (tmp_path / "results" / "report.md").read_text()


def test_a_report_keeps_what_earlier_runs_were_asked_for(config, tmp_path, run_nothing):
    earlier = Reproduction(dataclasses.replace(config, out=tmp_path, only=("table7",), cells=()), run_nothing)
    earlier.remember()
    later = Reproduction(dataclasses.replace(config, out=tmp_path, only=("table1",)), run_nothing)
    assert [table.name for table in later.shown()] == ["table1", "table7"]
    assert later.shown()[0].pairs == {"vilt/vqav2"}
    later.remember()
    assert [table.name for table in earlier.shown()] == ["table1", "table7"]


@pytest.mark.slow
def test_the_results_of_other_runs_stay(reproduced, config, tmp_path, run_nothing):
    places = {"out": tmp_path / "out", "results": tmp_path / "results"}
    counting = Reproduction(dataclasses.replace(config, only=("table7",), cells=(), **places), run_nothing)
    assert counting.run(Console(file=io.StringIO())) == {}
    counting.report()
    Reproduction(dataclasses.replace(config, results=places["results"]), run_nothing).report()
    together = read_json(places["results"] / "results.json")
    assert [table["name"] for table in together["tables"]] == ["table1", "table7"]
    assert together["tables"][0] == read_json(config.out / "results.json")["tables"][0]
    assert together["tables"][1]["rows"][0]["macs"]["original"] > 10**10
    assert [(list(run["of"]), run["rule"]) for run in together["runs"]] == [
        (["table1"], "official"),
        (["table7"], "official"),
    ]
    assert "rule=official" in (places["results"] / "report.md").read_text()
    (places["results"] / "results.json").write_text("{}")
    with pytest.raises(InputError, match="holds no results"):
        Reproduction(dataclasses.replace(config, **places), run_nothing)


def test_a_trial_keeps_out_of_the_folder_of_another_run(config, tmp_path, run_nothing):
    Reproduction(dataclasses.replace(config, out=tmp_path), run_nothing).remember()
    for trial in ({"settings": ("max_steps=3",)}, {"smoke": True, "settings": config.settings}):
        other = Reproduction(dataclasses.replace(config, out=tmp_path, **trial), run_nothing)
        with pytest.raises(InputError, match=r"holds a run with (settings|smoke)=.*; give another --out"):
            other.remember()


def test_two_runs_in_one_folder_are_refused(config):
    with only_one(config.out), pytest.raises(InputError, match="another process writes"):
        run(config, Console(quiet=True))


def test_a_step_that_fails_is_told_and_others_go_on(config, tmp_path):
    def failing(command, log, threads):
        raise InputError("no such thing")

    broken = Reproduction(dataclasses.replace(config, out=tmp_path), failing)
    printed = io.StringIO()
    failures = broken.run(Console(file=printed, width=200))
    assert set(failures) == {"train/vilt/vqav2/original/seed0", "train/vilt/vqav2/original/seed1"}
    assert printed.getvalue().count("failed: no such thing") == 2


def test_estimates_come_from_finished_steps_of_the_same_kind(reproduced):
    reproduction, _ = reproduced
    done = reproduction.done()
    first = next(step.name for step in reproduction.steps if step.name.startswith("train/"))
    left = {name: record for name, record in done.items() if name != first}
    assert set(estimate(reproduction.steps, left)) == {first}
    assert estimate(reproduction.steps, {}) == {}


def test_the_list_and_the_report_need_no_run(config, tmp_path):
    given = ["--only", "table1,table7", "--cells", "vilt/vqav2", "--out", str(tmp_path)]
    given += ["--data", str(config.data), "--seeds", "1"]
    listed = CliRunner().invoke(app, ["reproduce", *given, "--list"])
    assert listed.exit_code == 0, listed.output
    assert "0 of 12 done" in listed.stdout
    assert "missing" in listed.stdout
    collected = CliRunner().invoke(app, ["reproduce", *given, "--collect"])
    assert collected.exit_code == 0, collected.output
    report = (tmp_path / "report.md").read_text()
    assert "| vilt/vqav2 | PuMer | 0 of 1 | – | not run |" in report


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"only": ("table9",)}, "there is no table 'table9'; there are table1"),
        ({"cells": ("vilt/gqa",)}, "there is no cell 'vilt/gqa'"),
        ({"starts": {"clip": "x"}}, "there is no backbone 'clip'"),
        ({"scale": "half"}, "'scale' .*'half'"),
        ({"scale": "full"}, "--data FOLDER"),
        ({"jobs": 0}, r"'jobs' .* not 0"),
        ({"galleries": "foo"}, "galleries must be of the form 50x20"),
        ({"only": ("figure5",), "cells": ("meter/coco",)}, "figure5: no row of these tables is about meter/coco"),
        ({"out": Path(__file__)}, "cannot be written"),
        ({"trained": {"vilt/nlvr2": "/nowhere"}}, "checkpoint /nowhere does not exist"),
        ({"settings": ("foo=3",)}, "key 'foo' is unknown in train config"),
        ({"smoke": True, "results": Path("results")}, "leave out --results"),
        ({"seeds": 3, "trained": {"vilt/nlvr2": "m"}}, "leave out --trained, or --seeds 3"),
        ({"data": Path("/nowhere")}, "/nowhere does not exist"),
    ],
)
def test_what_cannot_be_is_refused(given, told, run_nothing):
    with pytest.raises(InputError, match=told):
        Reproduction(ReproduceConfig(**given), run_nothing)
