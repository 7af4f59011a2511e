"""What every command is given: ranges, names, places; all of it checked before anything heavy is loaded."""

import dataclasses
import importlib
import math
import pkgutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

import pumer.settings
from benchmarks.pretrain_small.settings import LlavaTrainingConfig, PretrainConfig
from benchmarks.reproduce.settings import ReproduceConfig
from pumer.settings import common
from pumer.settings.benchmark import BenchmarkConfig
from pumer.settings.data import CheckConfig, PrepareConfig, WorldConfig
from pumer.settings.demo import DemoConfig
from pumer.settings.evaluate import EvaluateConfig, EvaluationData
from pumer.settings.plan import PlanConfig
from pumer.settings.predict import PredictConfig
from pumer.settings.score import ScoreConfig
from pumer.settings.train import DistillationConfig, OptimizerConfig, TrainConfig, TrainingData
from pumer.settings.tune import BudgetConfig, TuneConfig
from pumer.settings.visualize import VisualizeConfig
from pumer.utils.config import load, parts
from pumer.utils.errors import InputError

GIVEN = {
    BenchmarkConfig: {},
    CheckConfig: {"task": "vqav2", "root": Path("data")},
    common.AugmentConfig: {},
    DemoConfig: {},
    DistillationConfig: {},
    OptimizerConfig: {},
    EvaluateConfig: {"model": "m"},
    PlanConfig: {},
    PredictConfig: {"model": "m"},
    PrepareConfig: {"task": "vqav2", "root": Path("data"), "out": Path("out")},
    LlavaTrainingConfig: {},
    PretrainConfig: {},
    ReproduceConfig: {},
    TrainConfig: {"model": "m", "output": Path("out"), "data": TrainingData(root=Path("data"))},
    TrainingData: {"root": Path("data")},
    BudgetConfig: {},
    TuneConfig: {"model": "m", "out": Path("out"), "budget": BudgetConfig(speedup=2.0)},
    VisualizeConfig: {"model": "m", "images": (Path("x.jpg"),), "questions": ("what?",)},
    WorldConfig: {},
}


def having(name):
    """The configs with a setting of that name."""
    return [cls for cls in GIVEN if name in {field.name for field in dataclasses.fields(cls)}]


def numbers(cls):
    """The numbers among the settings of a config: name, annotations with a range, whether it is a list of them."""
    for field in dataclasses.fields(cls):
        found = parts(field.type)
        annotated = [part for part in found if typing.get_origin(part) is typing.Annotated]
        bounded = [part for part in annotated if any(isinstance(one, FieldInfo) for one in part.__metadata__)]
        if {int, float} & set(found):
            yield field.name, bounded, any(typing.get_origin(part) is tuple for part in found)


@pytest.mark.parametrize("cls", GIVEN, ids=lambda cls: cls.__name__)
def test_every_number_has_a_range_and_is_refused_outside_of_it(cls):
    for name, bounded, several in numbers(cls):
        assert bounded or name == "places", f"{cls.__name__}.{name}"
        for value in (-1, math.inf, math.nan, True, "3") if bounded else (True, "3"):
            given = [value] * (2 if name == "betas" else 1) if several else value
            with pytest.raises(InputError, match=rf"'{name}.* must be .*, not ") as caught:
                cls(**GIVEN[cls] | {name: given})
            assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "setting"),
    [
        (VisualizeConfig, "text_length"),
        (PlanConfig, "text_length"),
        (EvaluateConfig, "text_length"),
        (TrainConfig, "text_length"),
        (BenchmarkConfig, "text_length"),
        (PretrainConfig, "minutes"),
    ],
)
def test_zero_is_not_the_default(cls, setting):
    with pytest.raises(InputError, match=f"'{setting}' .* must be .*, not 0"):
        cls(**GIVEN[cls] | {setting: 0})


@pytest.mark.parametrize(
    "cls", [CheckConfig, EvaluateConfig, PredictConfig, PrepareConfig, TrainConfig, VisualizeConfig]
)
def test_a_task_that_does_not_exist(cls):
    with pytest.raises(InputError, match="task 'vqa' is unknown"):
        cls(**GIVEN[cls] | {"task": "vqa"})


def test_names_that_are_known_before_their_modules_are_loaded():
    from pumer.backbones import BACKBONES
    from pumer.profiling.named_models import presets
    from pumer.reducers import METHODS
    from pumer.tasks import TASKS, Retrieval, Task

    assert tuple(TASKS) == common.TASKS
    assert tuple(name for name, task in TASKS.items() if issubclass(task, Retrieval)) == common.RETRIEVAL
    assert tuple(name for name, task in TASKS.items() if task.draw is not Task.draw) == common.RETRIEVAL
    assert tuple(BACKBONES) == common.BACKBONES
    assert tuple(METHODS) == common.METHODS
    own = dict.fromkeys(field.name for method in METHODS.values() for field in dataclasses.fields(method))
    assert ("method", "version", *own) == common.METHOD_SETTINGS
    assert tuple(presets()) == common.PRESETS


@pytest.mark.parametrize("cls", having("reduction"))
def test_a_method_that_does_not_exist(cls):
    for reduction in ("tomme", {"method": "tomme"}, {"layers": [1]}):
        if cls is not DemoConfig or isinstance(reduction, dict):
            with pytest.raises(InputError, match=r"method"):
                cls(**GIVEN[cls] | {"reduction": reduction})


@pytest.mark.parametrize("cls", [BenchmarkConfig, PlanConfig])
def test_a_preset_that_does_not_exist(cls):
    with pytest.raises(InputError, match="preset 'large' is unknown; there are: vilt-b32"):
        cls(model="preset:large")


def test_no_settings_import_what_takes_long():
    names = [f"pumer.settings.{module.name}" for module in pkgutil.iter_modules(pumer.settings.__path__)]
    assert len(names) > 9
    slow = "{'torch', 'transformers', 'numpy', 'PIL', 'datasets'}"
    code = f"import sys, pumer.cli, {', '.join(names)}; print({slow} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.stdout == "set()\n", told.stderr
    for name in names:
        importlib.import_module(name)


@pytest.mark.parametrize(
    ("cls", "changes", "said"),
    [
        (EvaluateConfig, {"split": "vall"}, "split 'vall' is unknown; did you mean 'val'"),
        (EvaluateConfig, {"task": "snli_ve", "split": "test-dev"}, "split 'test-dev' .*of task snli_ve"),
        (EvaluateConfig, {"data": {"train": "foo"}}, "data.train: split 'foo'"),
        (TrainConfig, {"data": {"root": "x", "eval": "restval"}}, "split 'restval' .*of task vqav2"),
        (PrepareConfig, {"splits": ["train", "dev"]}, "split 'dev'"),
        (PlanConfig, {"reduction": {"prune_ratio": 0.5}}, "reduction.method=pumer"),
        (PlanConfig, {"reduction": {"method": "pumr"}}, "method 'pumr' is unknown; did you mean 'pumer'"),
        (PlanConfig, {"reduction": {"method": "pumer", "merge_ratio": 1}}, "merge_ratio is 1"),
        (WorldConfig, {"tasks": "vqav2"}, r"as in tasks=\[vqav2\], not 'vqav2'"),
        (WorldConfig, {"tasks": ["coco", "vqa"]}, "task 'vqa' is unknown"),
        (WorldConfig, {"tasks": []}, "not empty"),
        (BenchmarkConfig, {"batch_sizes": []}, "not empty"),
        (OptimizerConfig, {"lr": 1e-8}, "lr must be above end_lr"),
        (EvaluateConfig, {"galleries": "50by20"}, "50x20"),
        (EvaluateConfig, {"task": "coco", "rule": "published"}, "rule=published is for task vqav2"),
        (ScoreConfig, {"task": "coco", "annotations": "a", "predictions": "p", "questions": "q"}, "--questions is for"),
    ],
)
def test_values_that_do_not_fit_are_refused_at_once(cls, changes, said):
    with pytest.raises(InputError, match=said):
        cls(**GIVEN.get(cls, {}) | changes)


def test_splits_are_those_of_the_tasks(tmp_path):
    from pumer.tasks import TASKS

    for task, splits in common.SPLITS.items():
        assert set(TASKS[task].splits) <= set(splits)
        for split in splits:
            try:
                TASKS[task].annotation_files(tmp_path, split)
            except InputError as error:
                assert str(tmp_path) in str(error), error
    assert common.known_split("train+restval", "coco") and common.known_split("train+restval")


def test_places_are_found_in_every_group(tmp_path):
    config = EvaluateConfig(model="small:vilt", data=EvaluationData(root=tmp_path), output="o.json", scores="s")
    assert config.written == (Path("o.json"), Path("s"))
    assert [name for name, _ in config.paths(common.Folder)] == ["data.root"]
    assert Path(config.model, "config.json") in config.read
    with pytest.raises(InputError, match=r"data\.root .*cat\.jpg is a file"):
        (tmp_path / "cat.jpg").write_text("")
        load(EvaluateConfig, None, [f"data.root={tmp_path}/cat.jpg"], {"model": "small:vilt"}).check_places()


def test_scoring_without_its_files(tmp_path):
    (tmp_path / "a").write_text("")
    for task, given, said in (
        ("vqav2", {"annotations": tmp_path / "b", "predictions": tmp_path / "a"}, "annotations .*b does not exist"),
        ("vqav2", {"annotations": tmp_path / "a", "predictions": tmp_path}, "predictions .* is a folder"),
        ("coco", {"annotations": tmp_path / "a", "predictions": tmp_path}, r"predictions .*scores\.npy does not exist"),
    ):
        with pytest.raises(InputError, match=said):
            ScoreConfig(task=task, **given).check_places()


def test_a_training_does_not_fill_a_folder_of_other_files(tmp_path):
    config = TrainConfig(model="small:vilt", output=tmp_path, data=TrainingData(root=tmp_path.parent))
    config.check_places()
    (tmp_path / "holiday.txt").write_text("")
    with pytest.raises(InputError, match=r"holds other files \(holiday\.txt\)"):
        config.check_places()
    for own in ("checkpoint-3", "train.log", "lost+found"):
        (tmp_path / own).mkdir()
        config.check_places()
        (tmp_path / own).rmdir()
