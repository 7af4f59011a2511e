"""Shapes and their strengths: the paper's among them, all of them fit, each meets a budget at the least strength."""

import optuna
import pytest
from tiny.decoders import DECODERS as TINY_DECODERS

import pumer
from pumer import PuMerConfig, Step, ToMeConfig
from pumer.settings.tune import DECODER, INSIDE, PROMPT
from pumer.tuning.space import METHOD, PAPER, STRONGEST, Space
from pumer.utils.errors import InputError


def models(tiny_vilt, tiny_meter):
    return {
        "vilt": pumer.load(tiny_vilt),
        "meter": pumer.load(tiny_meter),
        "llava": TINY_DECODERS["llava"].model(),
    }


def test_the_papers_schedule_is_one_of_them(tiny_vilt):
    space = Space.of(pumer.load(tiny_vilt), 26)
    shape = space.seeds("vqav2")[PAPER]
    assert space.config(shape, 0.4) == PuMerConfig.preset("vilt", "vqav2")
    gradual = space.config(space.seeds("vqav2")["gradual merging"], 0.135)
    assert gradual == PuMerConfig(layers=tuple(range(12)), merge_ratio=0.135)
    assert space.config(space.seeds("vqav2")["tome"], 0.5) == ToMeConfig(layers=tuple(range(12)), merge_count=12)


def test_merging_grows_with_depth_and_pruning_starts_late(tiny_vilt):
    space = Space.of(pumer.load(tiny_vilt), 26)
    numbers = {"first": 1, "steps": 3, "stride": 2, "slope": 0.5, "prune": 0.5, "prune_from": 0.5, "text": 0.0}
    shape = {METHOD: "pumer", **{f"pumer.{name}": value for name, value in numbers.items()}}
    assert space.config(shape, 0.4).schedule == (
        Step(layer=1, merge_ratio=0.1),
        Step(layer=3, merge_ratio=0.2),
        Step(layer=5, merge_ratio=0.3, prune_ratio=0.2),
    )


def test_every_shape_fits_its_model(tiny_vilt, tiny_meter):
    for name, model in models(tiny_vilt, tiny_meter).items():
        space = Space.of(model, 26, ("pumer", "fastv", "divprune", "tome") if name == "llava" else ("pumer", "tome"))
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        stacks = set()
        for _ in range(40):
            shape = space.suggest(study.ask())
            for strength in (0.0, 0.3, STRONGEST):
                config = space.config(shape, strength)
                pumer.patch(model, config)
                stacks |= {stack for stack, _ in config.places()}
        for shape in space.seeds("vqav2").values():
            pumer.patch(model, space.config(shape, 0.3))
        assert stacks == {"vilt": {"fusion"}, "meter": {"fusion", "vision"}, "llava": {"decoder"}}[name]


def test_every_method_reduces_in_its_models(tiny_vilt, tiny_meter):
    for name, model in models(tiny_vilt, tiny_meter).items():
        methods = (*DECODER, *PROMPT) if name == "llava" else INSIDE
        space = Space.of(model, 26, methods)
        assert {shape[METHOD] for shape in space.seeds("vqav2").values()} == set(methods)
        for shape in space.seeds("vqav2").values():
            config = pumer.patching.reduction(pumer.patch(model, space.config(shape, 0.3)))
            assert config.method == shape[METHOD]


def test_the_weakest_that_meets_a_target(tiny_vilt):
    space = Space.of(pumer.load(tiny_vilt), 26)
    shape = space.seeds("vqav2")["gradual merging"]

    def gain(config):
        return 1 + config.schedule[0].merge_ratio

    config = space.at(shape, 1.25, gain)
    assert 0.25 <= config.schedule[0].merge_ratio <= 0.2502
    assert space.at(shape, 1.6, gain) is None  # no more than half of the tokens merge


def test_other_methods_are_searched_in_a_vision_encoder_too(tiny_meter):
    space = Space.of(pumer.load(tiny_meter), 26, ("tome",))
    seeds = space.seeds("vqav2")
    assert {name: space.config(shape, 0.3).stack for name, shape in seeds.items()} == {
        "tome": "fusion",
        "tome, vision": "vision",
    }
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [space.config(space.suggest(study.ask()), 0.3) for _ in range(20)]
    assert {config.stack for config in drawn} == {"fusion", "vision"}
    assert all(set(config.layers) <= set(space.vision) for config in drawn if config.stack == "vision")


def test_a_method_of_other_models_is_refused(tiny_vilt):
    with pytest.raises(InputError, match=r"'fastv'.*tome"):
        Space.of(pumer.load(tiny_vilt), 26, ("fastv",))
    with pytest.raises(InputError, match=r"'evit'.*divprune"):
        Space.of(TINY_DECODERS["llava"].model(), 26, ("evit",))
