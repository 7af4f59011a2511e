"""Wrong settings are refused before any work: the data folder is never looked at, for there is none."""

import copy

import pytest
import torch
import yaml

from pumer.settings.train import TrainConfig
from pumer.training.preflight import validate
from pumer.training.run import run
from pumer.utils.config import load
from pumer.utils.errors import InputError

REDUCTION = {"method": "pumer", "layers": [0], "prune_ratio": 0.1, "merge_ratio": 0.3, "text_merge_ratio": 0.2}


@pytest.fixture
def recipe(tiny_vilt, tmp_path):
    """A recipe with every group of settings."""
    return {
        "model": str(tiny_vilt),
        "output": str(tmp_path / "out"),
        "data": {"root": str(tmp_path / "no-data"), "train": "train"},
        "reduction": REDUCTION,
        "teacher": "self",
        "distillation": {"weight": 1.0},
        "optimizer": {"lr": 1.0e-4},
        "augment": {"operations": 2},
        "report_to": [],
    }


def start(recipe, tmp_path, *settings):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return run(load(TrainConfig, path, settings), progress=False)


def refused(recipe, tmp_path, *settings):
    with pytest.raises(InputError) as error:
        start(recipe, tmp_path, *settings)
    assert not (tmp_path / "out").exists()
    message = str(error.value)
    assert "\n" not in message
    return message


def test_nothing_else_is_wrong_with_the_recipe(recipe, tmp_path):
    assert "no-data does not exist" in refused(recipe, tmp_path)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("epoch", "did you mean 'epochs'?"),
        ("learning_rate", "allowed: model, output, data"),
        ("optimizer.headfactor", "did you mean 'optimizer.head_factor'?"),
        ("optimizer.warmup_ratio", "did you mean 'optimizer.warmup'?"),
        ("distillation.hidden_wieght", "did you mean 'distillation.hidden_weight'?"),
        ("data.rot", "did you mean 'data.root'?"),
        ("augment.magnitud", "did you mean 'augment.magnitude'?"),
        ("reduction.prune_ration", "did you mean 'prune_ratio'?"),
        ("warmup", "did you mean 'optimizer.warmup'?"),
        ("magnitude", "did you mean 'augment.magnitude'?"),
    ],
)
def test_wrong_keys_name_the_nearest(recipe, tmp_path, key, nearest):
    message = refused(recipe, tmp_path, f"{key}=1")
    assert key.rpartition(".")[2] in message
    assert nearest in message


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epochs=ten", "key 'epochs' in train config must be an integer, not 'ten'"),
        ("optimizer.lr=high", "key 'optimizer.lr' in train config must be a number, not 'high'"),
        ("optimizer.betas=[0.9]", "'optimizer.betas' in train config must be a list of 2 values"),
        ("optimizer.name=adam", "'optimizer.name' in train config must be 'adamw' or 'sgd', not 'adam'"),
        ("precision=int8", "'precision' in train config must be 'fp32' or 'bf16' or 'fp16', not 'int8'"),
        ("gradient_checkpointing=3", "'gradient_checkpointing' in train config must be true or false, not 3"),
        ("teacher_cache=3", "'teacher_cache' in train config must be true or false or a path, not 3"),
        ("augment=strong", "augment"),
        ("augment.magnitude=40", "augment.magnitude must lie in [0, 30], not 40"),
        ("distillation.temperature=0", "distillation.temperature must be above 0"),
        ("data.limit=0", "data.limit must lie in [1, 1000000000], not 0"),
        ("data.min_answer_count=0", "data.min_answer_count must lie in [1, 1000000000], not 0"),
        ("seed=-1", "seed must lie in [0, 4294967295], not -1"),
        ("task=vqa", "task 'vqa' is unknown; there are: vqav2"),
        ("reduction.method=tomme", "reduction method 'tomme' is unknown"),
        ("reduction={method: tome, layers: [0], merge_count: 99}", "merge_count is 99, but fusion layers"),
        ("image_size=0", "image_size must lie in [1, 16384], not 0"),
        ("image_size=20", "image_size 20 is not a multiple of the patch size 8; give 16"),
        ("reduction.merge_ratio=1.0", "merge_ratio"),
        ("reduction.layers=[12]", "fusion layer 12 does not exist; vilt has 12 of them, 0 to 11"),
        ("text_length=13", "text_length must lie in [2, 12] for this model, not 13"),
        ("model=/nowhere", "checkpoint /nowhere is not a folder"),
        ("teacher=/nowhere", "checkpoint /nowhere is not a folder"),
        ("report_to=[tensorbord]", "report_to 'tensorbord' is unknown; did you mean 'tensorboard'?"),
        ("report_to=[codecarbon]", "`pip install codecarbon`"),
        ("compile=inductr", "compile 'inductr' is unknown; did you mean 'inductor'?"),
    ],
)
def test_wrong_values_are_named(recipe, tmp_path, setting, message):
    assert message in refused(recipe, tmp_path, setting)


def test_another_method_takes_the_place_of_the_recipes(recipe, tmp_path):
    for setting in ("reduction={method: evit, layers: [0], prune_ratio: 0.1}", "reduction=none"):
        assert "no-data does not exist" in refused(recipe, tmp_path, setting)
    message = refused(recipe, tmp_path, "reduction={method: evit, layers: [0], prune_ratio: 1.5}")
    assert message.startswith("prune_ratio of the reduction is 1.5")
    assert "prune_ratio of fusion layer 0 is 1.5" in refused(recipe, tmp_path, "reduction={prune_ratio: 1.5}")


def test_layers_that_cannot_reduce_are_named(recipe, tmp_path, tiny_meter):
    recipe = copy.deepcopy(recipe) | {"model": str(tiny_meter), "teacher": None}
    assert "fusion layer 1 of meter cannot reduce" in refused(recipe, tmp_path, "reduction.layers=[1]")
    assert "fusion layer 6 does not exist" in refused(recipe, tmp_path, "reduction.layers=[6]")
    assert "takes square images only" in refused(recipe, tmp_path, "resize=aspect")


def test_half_precision_needs_a_gpu(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "precision is 'fp16' but torch sees no GPU" in refused(recipe, tmp_path, "precision=fp16")


def test_a_check_draws_no_random_number(recipe, tmp_path):
    """Or the new head of a model would depend on what was checked before."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    before = torch.get_rng_state()
    validate(load(TrainConfig, path))
    assert torch.equal(torch.get_rng_state(), before)
