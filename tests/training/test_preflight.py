"""Wrong settings are refused before any work: the data folder is never looked at, because there is none."""

import pytest
import torch
import yaml

from pumer.settings.train import TrainConfig
from pumer.training.preflight import validate
from pumer.utils.config import load
from pumer.utils.errors import InputError

REDUCTION = {"method": "pumer", "layers": [0], "prune_ratio": 0.1, "merge_ratio": 0.3, "text_merge_ratio": 0.2}


@pytest.fixture
def check(tiny_vilt, tmp_path):
    """Validates a recipe with every group of settings and some changes; returns the message, None where it is fine."""
    recipe = {
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
    path = tmp_path / "recipe.yaml"

    def check(*settings, **changes):
        path.write_text(yaml.safe_dump(recipe | changes))
        try:
            validate(load(TrainConfig, path, settings))
        except InputError as error:
            assert not (tmp_path / "out").exists() and "\n" not in str(error)
            return str(error)
        return None

    return check


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("learning_rate", "allowed: model"),
        ("optimizer.headfactor", "'optimizer.head_factor'"),
        ("optimizer.warmup_ratio", "'optimizer.warmup'"),
        ("distillation.hidden_wieght", "'distillation.hidden_weight'"),
        ("augment.magnitud", "'augment.magnitude'"),
        ("reduction.prune_ration", "'prune_ratio'"),
        ("warmup", "'optimizer.warmup'"),
    ],
)
def test_wrong_keys_name_the_nearest(check, key, nearest):
    message = check(f"{key}=1")
    assert key.rpartition(".")[2] in message and nearest in message


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("epochs=ten", ["epochs", "integer", "ten"]),
        ("max_steps=0", ["max_steps", "1", "not 0"]),
        ("optimizer.lr=1e-8", ["lr", "end_lr=1e-07", "1e-08"]),
        ("optimizer.betas=[0.9]", ["optimizer.betas", "2 values"]),
        ("precision=int8", ["precision", "bf16", "int8"]),
        ("teacher_cache=3", ["teacher_cache", "true or false", "3"]),
        ("augment.magnitude=40", ["augment.magnitude", "30", "40"]),
        ("data.eval=null,patience=1", ["patience counts evaluations"]),
        ("reduction={method: tome, layers: [0], merge_count: 99}", ["merge_count is 99, but fusion layers"]),
        ("image_size=20", ["image_size 20 is not a multiple of the patch size 8; give 16"]),
        ("reduction.layers=[12]", ["fusion layer 12 does not exist; vilt has 12 of them, 0 to 11"]),
        ("reduction.merge_ratio=1.0", ["merge_ratio"]),
        ("text_length=13", ["text_length must lie in [2, 12] for this model, not 13"]),
        ("model=/nowhere", ["checkpoint /nowhere", "exist"]),
        ("teacher=/nowhere", ["checkpoint /nowhere", "exist"]),
        ("report_to=[tensorbord]", ["report_to 'tensorbord' is unknown; did you mean 'tensorboard'?"]),
        ("report_to=[codecarbon]", ["`pip install codecarbon`"]),
        ("compile=inductr", ["compile 'inductr' is unknown; did you mean 'inductor'?"]),
    ],
)
def test_wrong_values_are_named(check, setting, words):
    message = check(*(setting.split(",") if setting.startswith("data.eval") else [setting]))
    assert all(word in message for word in words), message


def test_another_method_takes_the_place_of_the_recipes(check):
    for setting in ("reduction={method: evit, layers: [0], prune_ratio: 0.1}", "reduction=none"):
        assert check(setting) is None
    for setting in ("reduction={method: evit, layers: [0], prune_ratio: 1.5}", "reduction={prune_ratio: 1.5}"):
        assert "prune_ratio is 1.5" in check(setting)


def test_layers_that_cannot_reduce_are_named(check, tiny_meter):
    meter = {"model": str(tiny_meter), "teacher": None}
    assert "fusion layer 1 of meter cannot reduce" in check("reduction.layers=[1]", **meter)
    assert "fusion layer 6 does not exist" in check("reduction.layers=[6]", **meter)
    assert "takes square images only" in check("resize=aspect", **meter)


def test_half_precision_needs_a_gpu(check, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "precision is 'fp16' but torch sees no GPU" in check("precision=fp16")


def test_an_output_that_is_a_file_is_refused(check, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file cannot be written" in check(output=str(tmp_path / "file"))


def test_validation_draws_no_random_number(check):
    """Or the new head of a model would depend on what was checked before."""
    before = torch.get_rng_state()
    assert check() is None
    assert torch.equal(torch.get_rng_state(), before)
