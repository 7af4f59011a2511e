import dataclasses
import json

import pytest

from benchmarks.reproduce.cells import Cell, reduced
from benchmarks.reproduce.setup import pumer_cell, read_recipe
from benchmarks.reproduce.steps import digest_of_weights, macs_step, steps
from benchmarks.reproduce.tables import Row, Table, tables
from pumer.utils.errors import InputError


def planned(setup, *cells, kind="cells"):
    rows = tuple(Row("", cell) for cell in cells)
    return {step.name: step for step in steps([Table("t", "", "", rows, kind)], setup)}


def test_every_step_is_there_once_and_after_what_it_needs(plans):
    found = steps(tables(plans).values(), plans)
    seen = set()
    for step in found:
        assert step.name not in seen
        assert seen.issuperset(step.after), step.name
        seen.add(step.name)
    assert [step.name for step in found if step.alone] == [step.name for step in found if "benchmark/" in step.name]


def test_a_reduced_cell_is_trained_tested_with_and_without_fine_tuning_scored_and_timed(plans):
    pumer = pumer_cell(plans, "vilt", "nlvr2")
    names = list(planned(plans, pumer))
    made, before, untuned = pumer.name, pumer.original.name, pumer.untuned.name
    assert names[0] == "world/nlvr2"
    assert set(names[1:]) == {
        *(f"{kind}/{name}" for kind in ("train", "test", "score", "predict") for name in (before, made)),
        *(f"{kind}/{untuned}" for kind in ("test", "score", "benchmark")),
    }


def test_retrieval_is_tested_in_galleries_and_not_predicted(plans):
    found = planned(plans, pumer_cell(plans, "vilt", "coco"))
    assert not [name for name in found if name.startswith("predict/")]
    (test,) = [step for name, step in found.items() if name.startswith("test/") and "original" in name]
    assert "galleries=50x20" in test.settings["given"]


def test_smaller_pictures_and_their_pumer(plans):
    (*_, small, whole, _) = tables(plans)["table2"].rows
    assert (small.cell.image_size, whole.cell.image_size) == (80, None)
    found = planned(plans, small.cell)
    chain = [name for name in found if name.startswith("train/")]
    assert chain == [f"train/{cell.name}" for cell in (small.cell.original, small.cell.base, small.cell)]
    assert found[chain[2]].after[-1] == chain[1]
    assert "image_size=80" in found[chain[1]].settings["given"]
    assert "teacher=null" in found[chain[1]].settings["given"]
    assert "teacher=null" not in found[chain[2]].settings["given"]
    (benchmark,) = [step for step in found.values() if step.alone]
    assert json.loads(benchmark.settings["given"][0].removeprefix("reductions="))["reduced"]["image_size"] == 80


def test_dynamicvit_has_the_losses_of_its_paper(plans):
    for method, expected in (("dynamicvit", True), ("random", False)):
        cell = reduced("vilt", "vqav2", {"method": method, "layers": [2], "prune_ratio": 0.5})
        given = planned(plans, cell)[f"train/{cell.name}"].settings["given"]
        assert ("distillation.hidden_weight=0.5" in given) == expected


def test_twins_keep_their_input_from_the_model(plans):
    found = planned(plans, Cell("vilt", "vqav2", blank="image"))
    assert [
        step.settings["given"] for name, step in found.items() if name.startswith("train/") and "no-image" in name
    ] == [["seed=0", "report_to=[]", "data.eval=null", "blank=image"]]
    assert not [step for step in found.values() if step.alone]


def test_training_time_needs_training_alone(plans):
    found = planned(plans, pumer_cell(plans, "vilt", "vqav2"), kind="training")
    assert [name.split("/")[0] for name in found] == ["world", "train", "train"]


def test_full_scale_takes_the_papers_recipes_and_no_world(plans, tmp_path):
    (tmp_path / "nlvr2").mkdir()
    full = dataclasses.replace(plans, scale="full", data=tmp_path, galleries=None, starts={"vilt": "some/start"})
    pumer = pumer_cell(full, "vilt", "nlvr2")
    found = planned(full, pumer)
    assert "world/nlvr2" not in found
    for cell, kind in ((pumer, "pumer"), (pumer.original, "original")):
        settings = found[f"train/{cell.name}"].settings
        recipe = read_recipe(f"vilt/nlvr2-{kind}")
        assert settings["recipe"]["optimizer"] == recipe["optimizer"]
        assert settings["start"] == "some/start"
    assert "data.eval=null" not in found[f"train/{pumer.name}"].settings["given"]  # it stops early
    with pytest.raises(InputError, match="vqav2 does not exist"):
        planned(full, pumer_cell(full, "vilt", "vqav2"))
    (tmp_path / "vqav2").mkdir()
    pumer = pumer_cell(full, "vilt", "vqav2")
    given = planned(full, pumer)[f"train/{pumer.name}"].settings["given"]
    assert {"data.eval=null", "patience=null"} <= set(given)  # it is tested on the split that would stop it


def test_a_given_original_is_taken_and_not_trained(plans):
    given = dataclasses.replace(plans, trained={"vilt/nlvr2": "some/model"})
    pumer = pumer_cell(given, "vilt", "nlvr2")
    step = planned(given, pumer)[f"train/{pumer.original.name}"]
    assert step.work() == {}
    assert (step.settings, given.weights(pumer.untuned)) == ("some/model", "some/model")


def test_multiply_accumulates_of_the_paper(plans):
    cell = Cell("vilt", "snli_ve")
    counted = planned(plans, cell, kind="macs")[macs_step(cell)].work()
    assert counted["original"] / 1e9 == pytest.approx(15.951, abs=0.01)
    assert counted["pumer"] / 1e9 == pytest.approx(7.69, abs=0.01)  # the reduction's own products are counted


def test_weights_are_told_apart_by_their_content(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    same, again, other = (digest_of_weights(str(tmp_path / name)) for name in "abc")
    assert same == again != other
    assert digest_of_weights("user/model") == "user/model"


def test_without_recipes_there_is_a_way_out(plans, tmp_path):
    with pytest.raises(InputError, match="--recipes"):
        pumer_cell(dataclasses.replace(plans, recipes=tmp_path), "vilt", "vqav2")
