import json

import pytest
from transformers import ViltConfig

import pumer
from pumer.models.meter import MeterConfig
from pumer.reducers import config_from_dict
from pumer.utils.errors import InputError
from pumer.utils.limits import check_checkpoint, check_model, check_reduction, check_tokens


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("patch_size", 0),
        ("patch_size", -16),
        ("patch_size", 16.0),
        ("patch_size", True),
        ("num_hidden_layers", 1_000_000),
        ("hidden_size", 0),
        ("num_attention_heads", 0),
        ("vocab_size", 10**12),
        ("image_size", [384, 10**9]),
    ],
)
def test_models_that_cannot_be_built_are_refused_before_they_are(key, value, tmp_path, tiny_vilt, tiny_meter):
    with pytest.raises(InputError, match=rf"somewhere: {key} must be an integer in \[.*\], not"):
        check_model({"vision_config": {key: value}}, "somewhere")
    config = json.loads((tiny_vilt / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    for check in (check_checkpoint, pumer.load):
        with pytest.raises(InputError, match=key):
            check(tmp_path)


def test_real_models_pass(tiny_vilt, tiny_meter):
    for folder in (tiny_vilt, tiny_meter):
        check_checkpoint(folder)
    for full_size in (ViltConfig(), MeterConfig(num_labels=3129)):
        check_model(full_size.to_dict(), "somewhere")
        check_tokens(full_size.image_size, full_size.patch_size)


def test_folders_that_hold_no_checkpoint(tmp_path):
    for name in (tmp_path, tmp_path / "nowhere", f"{tmp_path}/nowhere", "a/b/c"):
        with pytest.raises(InputError, match=f"checkpoint {name} "):
            check_checkpoint(name)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="must hold"):
        check_checkpoint(tmp_path)


def test_a_reduction_with_more_steps_than_any_model_has_layers(tiny_vilt, tmp_path):
    steps = [{"stack": "fusion", "layer": layer, "merge_ratio": 0.1} for layer in range(300_000)]
    for settings in ({"schedule": steps}, {"layers": list(range(300_000)), "merge_ratio": 0.1}):
        key = next(iter(settings))
        for check in (check_reduction, config_from_dict):
            with pytest.raises(InputError, match=f"{key} .* 300000 .* 1024"):
                check({"method": "pumer", **settings})
    (tmp_path / "config.json").write_text((tiny_vilt / "config.json").read_text())
    (tmp_path / "reduction.json").write_text(json.dumps({"method": "pumer", "layers": [1] * 2000}))
    with pytest.raises(InputError, match="2000"):
        check_checkpoint(tmp_path)


def test_more_tokens_than_attention_takes_in_reasonable_time(tiny_vilt):
    check_tokens(4096, 32)
    with pytest.raises(InputError, match=r"image_size 4128 .* 16641 .* 16384 .*=4096"):
        check_tokens(4128, 32)
    with pytest.raises(InputError, match="image_size 16384"):
        check_checkpoint(tiny_vilt, image_size=16384)
