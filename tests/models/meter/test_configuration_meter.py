"""METER's configuration: its defaults, its parts, what it refuses."""

import pytest
from transformers import AutoConfig

from pumer.models.meter import MeterConfig
from pumer.utils.errors import InputError


def test_the_defaults_are_those_of_its_authors():
    config = MeterConfig()
    assert (config.text_config.num_hidden_layers, config.text_config.max_position_embeddings) == (12, 514)
    assert (config.vision_config.num_hidden_layers, config.image_size, config.patch_size) == (11, 384, 16)
    assert (config.text_config.layer_norm_eps, config.vision_config.layer_norm_eps) == (1e-5, 1e-5)
    assert (config.layer_norm_eps, config.cross_modal_order) == (1e-12, "parallel")
    assert config.max_position_embeddings == 512


def test_a_dict_says_what_differs():
    config = MeterConfig(text_config={"vocab_size": 9}, vision_config={"image_size": 288})
    assert (config.text_config.vocab_size, config.text_config.type_vocab_size) == (9, 1)
    assert (config.image_size, config.vision_config.num_hidden_layers) == (288, 11)


def test_it_is_written_and_read_back(tmp_path):
    config = MeterConfig(
        text_config={"vocab_size": 9}, vision_config={"image_size": 288}, cross_modal_order="sequential", num_labels=3
    )
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, MeterConfig)
    assert again.to_dict() | {"_name_or_path": ""} == config.to_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cross_modal_order": "serial"}, r"'serial' is unknown; allowed: parallel, sequential"),
        ({"hidden_size": 30, "num_attention_heads": 4}, r"30 is not a multiple of num_attention_heads 4"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        MeterConfig(**settings)
