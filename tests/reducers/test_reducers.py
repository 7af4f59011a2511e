"""Configs as plain data and back, for every method; what a wrong mapping says."""

import json
import re

import pytest
import tiny
import yaml
from tiny import WITH_HEADS
from tiny.decoder_examples import DECODER_EXAMPLES

from pumer import InputError
from pumer.reducers import METHODS, config_from_dict, config_to_dict, example, reduction_from
from pumer.reducers.base import KEYS, ROWS, STATES

CONFIGS = [example.config for examples in tiny.EXAMPLES.values() for example in examples]
CONFIGS += [config for configs in DECODER_EXAMPLES.values() for config in configs]


def test_every_method_has_examples():
    assert set(tiny.EXAMPLES) == set(WITH_HEADS), "add an example config to tests/tiny.py"
    for method, examples in tiny.EXAMPLES.items():
        assert all(type(example.config) is METHODS[method] for example in examples)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_by_its_name_works_or_shows_settings_that_do(method):
    assert config_from_dict(example(method)).method == method
    try:
        assert reduction_from(method).method == method
    except InputError as error:
        typed = re.search(r"'reduction=(\{.*?\})'", str(error))
        assert yaml.safe_load(typed[1]) == example(method)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.method)
def test_round_trip_through_json(config):
    plain = config_to_dict(config)
    assert plain["method"] == config.method and plain["version"] == config.version
    again = config_from_dict(json.loads(json.dumps(plain)))
    assert again == config and type(again) is type(config) and hash(again) == hash(config)


@pytest.mark.parametrize(
    "method", [name for name, method in METHODS.items() if method.amounts and "prompt" not in method.stacks]
)
def test_layers_without_an_amount_are_refused(method):
    with pytest.raises(InputError, match=f"'{method}' names layers but not how much they remove; give .*(ratio|count)"):
        config_from_dict({"method": method, "layers": [1]})
    config_from_dict({"method": method, "layers": [1], METHODS[method].amounts[0]: 0})  # said so


def test_a_schedule_without_an_amount_is_refused():
    with pytest.raises(InputError, match="'pumer' names layers but not how much they remove"):
        config_from_dict({"method": "pumer", "schedule": [{"layer": 1}, {"layer": 2}]})
    config_from_dict({"method": "pumer", "schedule": [{"layer": 1}, {"layer": 2, "prune_ratio": 0.1}]})


def test_sugar_in_a_mapping():
    plain = {"method": "pumer", "layers": [2, 5], "prune_ratio": 0.1}
    assert config_from_dict(plain) == METHODS["pumer"](layers=(2, 5), prune_ratio=0.1)


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"method": "tome-ish"}, ["'tome-ish'", *METHODS]),
        ({}, ["None", *METHODS]),
        ({"method": ["pumer"]}, ["['pumer']"]),
        ({"method": "pumer", "version": 99, "layers": [1]}, ["version 99", "'pumer'", "version 1"]),
        ({"method": "pumer", "version": "1", "layers": [1]}, ["version '1'"]),
        ({"method": "pumer", "layer": [2]}, ["'layer'", "'layers'"]),
        ({"method": "pumer", "layers": 2}, ["'layers'", "2"]),
        ({"method": "pumer", "schedule": [{"layer": 2, "merge": 0.1}]}, ["merge", "merge_ratio"]),
        ({"method": "pumer", "layers": [2], "prune_ratio": "0.1"}, ["prune_ratio", "'0.1'"]),
        ({"method": "pumer", "layers": [2], "prune_ratio": 1.0}, ["prune_ratio", "1.0"]),
        ({"method": "pumer-released", "layers": [1, 1]}, ["layer 1", "2 times"]),
        ({"method": "pumer-released", "similarity": "last_head"}, ["last_head", "mean_head"]),
        ([1, 2], ["[1, 2]", "mapping"]),
        (None, ["None", "mapping"]),
        ("pumer", ["'pumer'", "mapping"]),
    ],
)
def test_wrong_mapping_is_named_in_one_line(mapping, words):
    with pytest.raises(InputError) as caught:
        config_from_dict(mapping)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.method)
def test_places_cover_the_reducers(config):
    assert set(config.reducers()) <= set(config.places())
    for reducer in [*config.reducers().values(), *config.learned({"fusion": 8, "vision": 8, "decoder": 8}).values()]:
        assert reducer.needs <= {KEYS, STATES, *ROWS}
