import dataclasses
import importlib
import math
import pkgutil
import typing
from pathlib import Path

import pytest

import pumer.settings
from benchmarks.pretrain_small.settings import PretrainConfig
from benchmarks.reproduce.settings import ReproduceConfig
from pumer.settings import common
from pumer.settings.benchmark import BenchmarkConfig
from pumer.settings.data import CheckConfig, PrepareConfig, WorldConfig
from pumer.settings.demo import DemoConfig
from pumer.settings.evaluate import EvaluateConfig
from pumer.settings.plan import PlanConfig
from pumer.settings.predict import PredictConfig
from pumer.settings.score import ScoreConfig
from pumer.settings.train import TrainConfig, TrainingData
from pumer.settings.visualize import VisualizeConfig
from pumer.utils.arguments import RANGES, in_range, new_files, writable, writable_folders
from pumer.utils.errors import InputError

GIVEN = {
    BenchmarkConfig: {},
    CheckConfig: {"task": "vqav2", "root": Path("data")},
    DemoConfig: {},
    EvaluateConfig: {"model": "m"},
    PlanConfig: {},
    PredictConfig: {"model": "m"},
    PrepareConfig: {"task": "vqav2", "root": Path("data"), "out": Path("out")},
    PretrainConfig: {},
    ReproduceConfig: {},
    TrainConfig: {"model": "m", "output": Path("out"), "data": TrainingData(Path("data"))},
    TrainingData: {"root": Path("data")},
    VisualizeConfig: {"checkpoint": "m", "images": (Path("x.jpg"),), "question": "what?"},
    WorldConfig: {},
}


def having(name):
    """The configs with a setting of that name."""
    return [cls for cls in GIVEN if name in {field.name for field in dataclasses.fields(cls)}]


def numbers(cls):
    """The settings of a config that are numbers with a range."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kinds = typing.get_args(hints[field.name]) or (hints[field.name],)
        if field.name in RANGES and {int, float} & set(kinds):
            yield field.name, tuple in kinds or Ellipsis in kinds


@pytest.mark.parametrize("cls", GIVEN, ids=lambda cls: cls.__name__)
def test_numbers_outside_of_their_range_are_refused_in_every_command(cls):
    for name, several in numbers(cls):
        least, most = RANGES[name]
        for value in (least - 1, most + 1, math.inf, math.nan, 10**30):
            with pytest.raises(InputError, match=rf"{name} must lie in \[.*\], not ") as caught:
                cls(**GIVEN[cls] | {name: (value,) if several else value})
            assert str(value) in str(caught.value)


def test_every_integer_of_a_config_has_a_range():
    unbounded = {"weight_decay", "max_image_tokens", "operations"}
    for cls in GIVEN:
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if int in (typing.get_args(hints[field.name]) or (hints[field.name],)):
                assert field.name in RANGES or field.name in unbounded | {"places"}, f"{cls.__name__}.{field.name}"


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
    with pytest.raises(InputError, match=f"{setting} must lie in .*, not 0"):
        cls(**GIVEN[cls] | {setting: 0})


@pytest.mark.parametrize(
    "cls", [CheckConfig, EvaluateConfig, PredictConfig, PrepareConfig, TrainConfig, VisualizeConfig]
)
def test_a_task_that_does_not_exist(cls):
    with pytest.raises(InputError, match="task 'vqa' is unknown"):
        cls(**GIVEN[cls] | {"task": "vqa"})


def test_values_of_other_kinds_are_passed_over():
    @dataclasses.dataclass
    class Config:
        resize: str = "square"
        train: str | None = None
        batch_sizes: tuple[int, ...] = (1, 8)

    in_range(Config())
    with pytest.raises(InputError, match=r"data\.batch_sizes must lie in \[1, 65536\], not 0"):
        in_range(Config(batch_sizes=(1, 0)), "data.")


def test_files_that_are_there_are_kept(tmp_path):
    file, other = tmp_path / "a.json", tmp_path / "b.json"
    file.write_text("kept")
    new_files(None, other, inputs=[file, None])
    new_files(file, force=True)
    with pytest.raises(InputError, match=r"a\.json exists already; .*--force"):
        new_files(other, file)
    with pytest.raises(InputError, match=r"a\.json is read"):
        new_files(tmp_path / "x" / ".." / "a.json", force=True, inputs=[file])
    with pytest.raises(InputError, match=r"b\.json is given for two results"):
        new_files(other, other)


def test_files_that_cannot_be_written_are_refused_beforehand(tmp_path):
    writable(None, tmp_path / "new.json", tmp_path / "new" / "folder" / "new.json")
    (tmp_path / "file").write_text("")
    writable(tmp_path / "file")
    with pytest.raises(InputError, match="is a folder; give the name of a file"):
        writable(tmp_path)
    with pytest.raises(InputError, match=r"file/x\.json cannot be written, for .*file is not writable"):
        writable(tmp_path / "file" / "x.json")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that takes no files")
def test_folders_that_take_no_files_are_found_out():
    with pytest.raises(InputError, match="for /proc is not writable"):
        writable(Path("/proc/x.csv"))


def test_folders_that_cannot_be_made(tmp_path):
    writable_folders(None, tmp_path, tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(InputError, match="file is not writable"):
            writable_folders(folder)


def test_scoring_without_its_files(tmp_path):
    config = ScoreConfig("vqav2", tmp_path / "a", tmp_path / "p")
    with pytest.raises(InputError, match=r"a does not exist; give --annotations"):
        config.check_places()


def test_names_that_are_known_before_their_modules_are_loaded():
    from pumer.backbones import BACKBONES
    from pumer.profiling.named_models import PRESETS
    from pumer.reducers import METHODS
    from pumer.tasks import TASKS, Retrieval, Task

    assert tuple(TASKS) == common.TASKS
    assert tuple(name for name, task in TASKS.items() if issubclass(task, Retrieval)) == common.RETRIEVAL
    assert tuple(name for name, task in TASKS.items() if task.draw is not Task.draw) == common.RETRIEVAL
    assert tuple(BACKBONES) == common.BACKBONES
    assert tuple(METHODS) == common.METHODS
    assert tuple(PRESETS) == common.PRESETS


@pytest.mark.parametrize("cls", having("reduction"))
def test_a_method_that_does_not_exist(cls):
    for reduction in ("tomme", {"method": "tomme"}, {"layers": [1]}):
        if cls is not DemoConfig or isinstance(reduction, dict):
            with pytest.raises(InputError, match=r"method .* is unknown; there are none, pumer"):
                cls(**GIVEN[cls] | {"reduction": reduction})


@pytest.mark.parametrize("cls", [BenchmarkConfig, PlanConfig])
def test_a_preset_that_does_not_exist(cls):
    with pytest.raises(InputError, match="preset 'large' is unknown; there are: vilt-b32"):
        cls(model="preset:large")


def test_no_settings_import_what_takes_long():
    import subprocess
    import sys

    names = [f"pumer.settings.{module.name}" for module in pkgutil.iter_modules(pumer.settings.__path__)]
    assert len(names) > 9
    slow = "{'torch', 'transformers', 'numpy', 'PIL', 'datasets'}"
    code = f"import sys, pumer.cli, {', '.join(names)}; print({slow} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.stdout == "set()\n", told.stderr
    for name in names:
        importlib.import_module(name)
