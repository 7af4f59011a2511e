"""The whole decision of PuMer's reducer against a plain loop over one example; counts and settings."""

from dataclasses import replace

import pytest
import torch
from by_hand import decide_by_hand, groups, handed_out, image_columns, random_cues
from hypothesis import example, given
from hypothesis import strategies as st

import pumer
from pumer import InputError, PuMerConfig, Step
from pumer.profiling.named_models import skeleton
from pumer.reducers.pumer import PRESETS, PuMerReducer

RATIOS = st.one_of(st.just(0.0), st.sampled_from([0.1, 0.2, 0.3, 0.5]), st.floats(0, 0.99))
STEPS = st.builds(Step, layer=st.just(0), prune_ratio=RATIOS, merge_ratio=RATIOS, text_merge_ratio=RATIOS)


@given(
    STEPS,
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 16)), min_size=1, max_size=3),
    st.integers(0, 4),
    st.booleans(),
    st.integers(0, 2**31),
)
@example(Step(layer=0, prune_ratio=0.9, merge_ratio=0.9, text_merge_ratio=0.9), [(1, 1), (2, 2), (3, 3)], 0, False, 0)
@example(Step(layer=0, prune_ratio=0.2, merge_ratio=0.2), [(1, 3), (8, 1)], 1, False, 0)  # more words than patches
def test_decision_against_a_loop(step, lengths, spare, one_stream, seed):
    reducer, cues = PuMerReducer(step), random_cues(lengths, spare, seed, one_stream)
    decision, slots = reducer.decide(handed_out(cues, reducer.needs)), cues.tokens.text_length
    averaged, reduced = (cues.tokens.reduce(d).states for d in (replace(decision, stays=(False, False)), decision))
    assert torch.equal(reduced[decision.mask], averaged[decision.mask]), "what stays need not be averaged"
    for b, (T, V) in enumerate(lengths):
        rows = image_columns(cues, b, cues.query[b, :, :T])
        by_hand = decide_by_hand(step, cues.text_key[b, :, :T], cues.image_key[b, :, :V], rows)
        text, image = groups(decision, b, slots)
        assert (text, image) == by_hand
        assert text[0] == [0] and image[0] == [0], "[CLS] stands alone at index 0"
        destination = decision.destination[b, slots:].tolist()
        pruned = [v for v, slot in enumerate(destination) if slot < 0]
        held = [v for group in by_hand[1] for v in group]
        assert sorted([*pruned, *held]) == list(range(len(destination))), "each token once"


@given(STEPS, st.booleans(), st.integers(0, 2**31))
@example(Step(layer=0, prune_ratio=0.3, merge_ratio=0.3), True, 0)
def test_a_sample_of_nan_changes_no_other(step, one_stream, seed):
    cues, reducer = random_cues([(4, 9), (3, 12), (5, 6)], 1, seed, one_stream), PuMerReducer(step)
    spoiled = replace(cues, key=cues.key.clone(), query=cues.query.clone())
    spoiled.key[1], spoiled.query[1] = torch.nan, torch.nan
    expected, found = reducer.decide(cues), reducer.decide(spoiled)
    assert torch.equal(found.moves[::2], expected.moves[::2]) and torch.equal(found.lengths, expected.lengths)
    assert (found.destination < found.outputs).all()
    assert found.index.amax() < found.tokens and found.index.amin() >= 0


@given(STEPS, st.integers(1, 200))
def test_counts_follow_pythons_rounding_and_the_caps(step, n):
    pruned = min(round(step.prune_ratio * n), n - 1)
    assert step.kept(n) == n - pruned
    assert step.merges(n) == min(round(step.merge_ratio * n), (n - pruned - 1) // 2)
    assert step.text_merges(n) == min(round(step.text_merge_ratio * n), (n - 1) // 2)
    assert step.kept(n) >= 1 and step.kept(n) - step.merges(n) >= 1 and n - step.text_merges(n) >= 1


def test_counts_of_the_paper():
    """Table 7's token counts: ViLT at 384 px, 144 patches and [CLS], three reductions with 0.1 / 0.3 / 0.2."""
    step, image, text, counts = Step(layer=2, prune_ratio=0.1, merge_ratio=0.3, text_merge_ratio=0.2), 145, 32, []
    for _ in range(3):
        image, text = step.kept(image) - step.merges(image), text - step.text_merges(text)
        counts.append((image, text))
    assert counts == [(145 - 14 - 44, 26), (87 - 9 - 26, 21), (52 - 5 - 16, 17)]


def test_half_is_rounded_to_even():
    assert [Step(layer=0, prune_ratio=0.5).kept(n) for n in (3, 5, 7)] == [1, 3, 3]


def left(step, n):
    return step.kept(n) - step.merges(n)


def test_buffer_holds_every_length_though_counts_are_not_monotone():
    """A shorter sample may keep more tokens than the longest: the buffer must hold both."""
    steps = [Step(layer=0, prune_ratio=p / 20, merge_ratio=m / 20) for p in range(1, 20) for m in range(1, 20)]
    found = [(step, n) for step in steps for n in range(3, 24) if left(step, n) > left(step, n + 1)]
    assert found, "no ratios with a falling count: this test would show nothing"
    for step, n in found[:: max(len(found) // 5, 1)]:
        reducer, cues = PuMerReducer(step), random_cues([(3, n), (3, n + 1)], 0, 0)
        decision = reducer.decide(cues)
        image = decision.mask[:, decision.slots[0] :]
        assert image.sum(dim=1).tolist() == [left(step, n), left(step, n + 1)]
        assert image.shape[1] == max(left(step, length) for length in range(n + 2))


def test_needs_only_what_it_uses():
    assert PuMerReducer(Step(layer=0, prune_ratio=0.1)).needs == {"text_rows"}
    assert PuMerReducer(Step(layer=0, merge_ratio=0.1)).needs == {"keys"}
    assert PuMerReducer(Step(layer=0, text_merge_ratio=0.1)).needs == {"keys"}
    assert PuMerReducer(Step(layer=0, prune_ratio=0.1, merge_ratio=0.1)).needs == {"keys", "text_rows"}


@pytest.mark.parametrize("name", ["prune_ratio", "merge_ratio", "text_merge_ratio"])
@pytest.mark.parametrize("value", [1.0, 1, -0.1, float("nan"), float("inf"), True, "0.1"])
def test_ratio_out_of_range_is_refused(name, value):
    with pytest.raises(InputError) as caught:
        PuMerConfig(layers=(2,), **{name: value})
    message = str(caught.value)
    assert name in message and repr(value) in message and "[0, 1)" in message and "\n" not in message


def test_constructor_settings_read_back_as_none_rather_than_as_wrong_values():
    config = PuMerConfig(layers=(2,), prune_ratio=0.1)
    assert config.layers is None and config.prune_ratio is None
    assert config.schedule == (Step(layer=2, prune_ratio=0.1),)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": (2, 5, 2)}, ["fusion layer 2", "2 times"]),
        ({"layers": (-1,)}, ["-1", "layers[0]", "[0, inf)"]),
        ({"layers": (True,)}, ["True"]),
        ({"layers": (2.0,)}, ["2.0"]),
        ({"layers": ("2",)}, ["'2'"]),
        ({"layers": 5}, ["5", "list"]),
        ({}, ["layers=[2, 5, 8]"]),
        ({"prune_ratio": 0.1}, ["layers=[2, 5, 8]"]),
        ({"layers": (2,), "schedule": (Step(layer=1),)}, ["both schedule and layers"]),
        ({"merge_ratio": 0.1, "schedule": (Step(layer=1),)}, ["both schedule and layers"]),
        ({"schedule": (Step(layer=1), Step(layer=1))}, ["layer 1", "2 times"]),
        ({"layers": (2,), "max_image_tokens": 0}, ["max_image_tokens", "0"]),
        ({"layers": (2,), "max_image_tokens": True}, ["max_image_tokens", "True"]),
        ({"layers": (2,), "max_image_tokens": 2.5}, ["max_image_tokens", "2.5"]),
    ],
)
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(InputError) as caught:
        PuMerConfig(**settings)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"layer": 0, "stack": "language"}, "'language'"),
        ({"layer": 5, "stack": "decoder", "text_merge_ratio": 0.1}, "decoder layer 5"),
        ({"layer": 0, "stack": "vision", "prune_ratio": 0.1}, "vision layer 0"),
        ({"layer": 0, "stack": "vision", "text_merge_ratio": 0.1}, "vision layer 0"),
        ({"layer": -3}, "-3"),
    ],
)
def test_wrong_steps_are_refused(settings, word):
    with pytest.raises(InputError, match=word):
        Step(**settings)


def test_layers_are_sugar_for_steps_in_order():
    config = PuMerConfig(layers=(5, 2), prune_ratio=0.1, merge_ratio=0.3)
    steps = (Step(layer=2, prune_ratio=0.1, merge_ratio=0.3), Step(layer=5, prune_ratio=0.1, merge_ratio=0.3))
    assert config == PuMerConfig(schedule=steps)
    assert hash(config) == hash(PuMerConfig(layers=[5, 2], prune_ratio=0.1, merge_ratio=0.3))
    assert config.places() == [("fusion", 2), ("fusion", 5)]


def test_vision_steps_come_first():
    steps = (Step(layer=0, merge_ratio=0.1), Step(stack="vision", layer=3, merge_ratio=0.1))
    assert PuMerConfig(schedule=steps).places() == [("vision", 3), ("fusion", 0)]


def test_a_step_that_removes_nothing_has_no_reducer_but_a_place():
    config = PuMerConfig(schedule=(Step(layer=1), Step(layer=2, merge_ratio=0.1)))
    assert list(config.reducers()) == [("fusion", 2)]
    assert config.places() == [("fusion", 1), ("fusion", 2)]


def test_replace_keeps_the_schedule():
    config = PuMerConfig(layers=(2, 5), prune_ratio=0.1)
    changed = replace(config, proportional_attention=False, max_image_tokens=228)
    assert changed.schedule == config.schedule and not changed.proportional_attention


def test_preset_is_the_papers_schedule():
    """Table 6 and the released commands."""
    assert PuMerConfig.preset("vilt", "snli_ve").places() == [("fusion", layer) for layer in (2, 4, 6, 8)]
    step = Step(layer=5, prune_ratio=0.1, merge_ratio=0.3, text_merge_ratio=0.2)
    assert step in PuMerConfig.preset("vilt", "vqav2").schedule
    for backbone, task in PRESETS:
        PuMerConfig.preset(backbone, task)


def test_unknown_preset_names_the_known():
    with pytest.raises(InputError, match=r"vilt/imagenet.*vilt/vqav2"):
        PuMerConfig.preset("vilt", "imagenet")


@pytest.mark.parametrize("name", ["small:vilt", "preset:vilt-b32"])
@pytest.mark.parametrize("task", ["vqav2", "snli_ve"])
def test_the_gradual_preset_merges_image_tokens_alone_for_about_as_many_macs(name, task):
    model, more = skeleton(name), {}
    configs = [PuMerConfig.preset("vilt", task, style=style) for style in ("paper", "gradual")]
    for words in (12, 20, 32):
        paper, gradual = (pumer.plan(pumer.patch(model, config), text_length=words).macs for config in configs)
        more[words] = gradual / paper - 1
    assert all(step.prune_ratio == step.text_merge_ratio == 0 for step in configs[1].schedule)
    assert -0.1 < more[12] < -0.04
    assert -0.06 < more[20] < more[32] < 0.04


def test_the_vision_preset_merges_in_the_layers_that_are_asked_for():
    usual = PuMerConfig.preset("meter", "vqav2", vision=True)
    assert [layer for stack, layer in usual.places() if stack == "vision"] == [2, 5, 8]
    config = PuMerConfig.preset("meter", "vqav2", vision=(1, 2, 3))
    assert config.schedule[3:] == usual.schedule[3:]
    assert [(step.layer, step.merge_ratio) for step in config.schedule[:3]] == [(1, 0.2), (2, 0.2), (3, 0.2)]
    assert pumer.reduction(pumer.patch(pumer.load("small:meter"), config)) == config


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"style": "fast"}, "gradual.*fast"),
        ({"style": "gradual"}, "meter"),
        ({"style": "gradual", "vision": True}, "meter"),
    ],
)
def test_presets_that_there_are_not(settings, named):
    with pytest.raises(InputError, match=named):
        PuMerConfig.preset("meter", "vqav2", **settings)
