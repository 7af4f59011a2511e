import json
import shutil
from dataclasses import replace

import pytest
import yaml
from tiny import WITH_HEADS

from benchmarks.reproduce import paper
from benchmarks.reproduce.settings import PAIRS
from benchmarks.reproduce.tables import RESOLUTION, STRENGTHS, VISION_RATIOS, chosen, tables
from pumer.backbones import BACKBONES
from pumer.reducers import config_from_dict
from pumer.tasks import TASKS
from pumer.utils.shipped import PACKAGE


@pytest.fixture
def known(plans):
    return tables(plans)


def papers(table):
    return [row.paper for row in table.rows if row.paper is not None]


def test_table_1_has_every_task_of_every_backbone_and_all_of_the_papers_figures(known):
    rows = known["table1"].rows
    assert {row.where.split()[0] for row in rows} == {f"{backbone}/{task}" for backbone in BACKBONES for task in TASKS}
    assert set(papers(known["table1"])) == {figures for pair in paper.TABLE_1.values() for figures in pair}
    for place, (original, pumer) in paper.TABLE_1.items():
        here = [row for row in rows if row.where == place]
        assert [(row.model.split(",")[0], row.paper) for row in here] == [("original", original), ("PuMer", pumer)]


def test_other_ratios_than_the_papers_are_told(known):
    told = {row.where: row.model for row in known["table1"].rows if row.changed}
    assert told["vilt/snli_ve"] == told["meter/vqav2"] == "PuMer"
    assert told["meter/snli_ve"] == "PuMer, 0.2 / 0.2 / 0.2"


def test_a_recipe_may_give_each_layer_its_own_ratios(plans, tmp_path):
    recipes = shutil.copytree(PACKAGE / "recipes", tmp_path / "recipes")
    path = recipes / "vilt" / "world-nlvr2-pumer.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["reduction"] = {"method": "pumer", "schedule": [{"layer": 2, "merge_ratio": 0.5}]}
    path.write_text(yaml.safe_dump(settings))
    rows = tables(replace(plans, recipes=recipes))["table1"].rows
    assert [row.model for row in rows if row.pair == "vilt/nlvr2" and row.changed] == ["PuMer, another schedule"]


def test_the_other_tables_have_all_of_the_papers_figures(known):
    assert papers(known["table2"]) == [
        *(figures for size, figures in paper.TABLE_2.items() if size != 384),
        *paper.TABLE_2_PUMER.values(),
        paper.TABLE_2[384],
    ]
    assert papers(known["table3"]) == list(paper.TABLE_3.values())
    designs = [figures for designs in paper.TABLE_4.values() for figures in designs.values()]
    assert papers(known["table4"]) == [*designs, paper.TABLE_4_ORIGINAL]
    assert [row.where for row in known["table7"].rows] == list(paper.TABLE_7)


def test_figure_5_has_every_method_at_several_strengths(known):
    series = [row.series for row in known["figure5"].rows]
    assert set(STRENGTHS) == set(WITH_HEADS) - {"none"}
    assert set(series) == {"", RESOLUTION, *STRENGTHS}
    assert min(series.count(name) for name in (RESOLUTION, *STRENGTHS)) >= 2


def test_every_reduction_is_one_and_every_row_has_its_own_cell(known):
    for table in known.values():
        for row in table.rows:
            if row.cell.settings is not None:
                config_from_dict(row.cell.settings)
        rows = [(row.cell, row.direction) for row in table.rows]
        assert len(set(rows)) == len(rows), table.name


def test_every_changed_row_is_also_tested_without_fine_tuning(known):
    for table in (table for table in known.values() if table.kind == "cells"):
        for row in table.rows:
            assert len(row.untuned) == (row.seeds if row.changed else 0)
            assert all(not cell.tuned and cell.weights == cell.original for cell in row.untuned)


def test_tables_share_their_cells(known):
    pumer = next(row.cell for row in known["table1"].rows if row.where == "vilt/vqav2" and row.model == "PuMer")
    assert pumer in known["table3"].cells
    assert pumer in known["figure5"].cells
    entailment = next(row.cell for row in known["table1"].rows if row.where == "vilt/snli_ve" and row.model == "PuMer")
    assert entailment in known["table4"].cells


def test_seeds(plans, known):
    assert {row.seeds for row in known["table1"].rows if row.cell.backbone == "vilt"} == {3}
    assert {row.seeds for table in known.values() for row in table.rows if row.cell.backbone == "meter"} == {1}
    row = known["table1"].rows[0]
    assert [cell.seed for cell in row.tuned] == [0, 1, 2]
    assert {row.seeds for table in tables(plans, 2).values() if table.kind == "cells" for row in table.rows} == {2}


def test_an_original_that_is_given_is_the_only_one(plans):
    rows = tables(replace(plans, trained={"vilt/nlvr2": "given"}))["table1"].rows
    assert {row.seeds for row in rows if row.pair == "vilt/nlvr2"} == {1}
    assert {row.seeds for row in rows if row.pair == "vilt/vqav2"} == {3}


def test_some_of_them_can_be_chosen(known):
    assert list(chosen(known, (), ())) == list(known.values())
    (table,) = chosen(known, ("table1", "table4"), ("meter/coco",))
    assert table.name == "table1"
    assert {row.where for row in table.rows} == {"meter/coco TR", "meter/coco IR"}
    assert set(PAIRS) >= {row.where for row in known["table7"].rows}


def test_the_vision_encoder_merges_more_and_more_beside_pumers_own_schedule(known):
    original, pumer, *others = (row.cell for row in known["vision"].rows)
    assert pumer.original == original
    own = config_from_dict(pumer.settings).schedule
    for cell, ratio in zip(others, VISION_RATIOS, strict=True):
        schedule = config_from_dict(cell.settings).schedule
        seeing = [step for step in schedule if step.stack == "vision"]
        assert [(step.layer, step.merge_ratio) for step in seeing] == [(layer, ratio) for layer in (1, 2, 3)]
        assert tuple(step for step in schedule if step.stack == "fusion") == own


def test_the_small_models_see_pictures_in_the_papers_proportions(known):
    sizes = [row.cell.image_size for row in known["table2"].rows]
    assert sizes == [48, 56, 64, 80, 80, None, None]
    assert json.loads(known["table2"].rows[4].cell.reduction)["method"] == "pumer"
