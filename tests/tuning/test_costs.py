"""Costs that are known without a run: against plans, against times that are made up, and corrected by measuring."""

import pytest
from tiny.decoders import DECODERS as TINY_DECODERS

import pumer
from pumer import NoReduction, PuMerConfig, Step, ToMeConfig
from pumer.profiling.planning import plan
from pumer.profiling.prompt_planning import plan_prompt
from pumer.reducers import DivPruneConfig, FastVConfig, L2NormConfig, PoolingConfig
from pumer.tuning.costs import SLACK, Gauge, Path, Table, meeting

SIZE, TEXT = 96, 9


def vilt():
    from transformers import ViltConfig, ViltForQuestionAnswering

    shape = {"hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 64}
    return ViltForQuestionAnswering(ViltConfig(image_size=SIZE, patch_size=8, vocab_size=20, **shape)).eval()


def meter(folder):
    return pumer.load(folder)


def path_of(model, text):
    rows = plan(model, None, text).layers
    stacks = {}
    for row in rows:
        stacks[row.stack] = stacks.get(row.stack, 0) + 1
    return Path(stacks, text, (rows[0].image_tokens,), as_one="vision" not in stacks)


IN_VILT = {
    "pumer": PuMerConfig(layers=(0, 2, 3), prune_ratio=0.1, merge_ratio=0.3, text_merge_ratio=0.2),
    "merging": PuMerConfig(schedule=tuple(Step(layer=at, merge_ratio=0.05 * (at + 1)) for at in range(6))),
    "tome": ToMeConfig(layers=(0, 1, 4), merge_count=13),
    "l2norm": L2NormConfig(layers=(1, 3), prune_ratio=0.4),
    "pooling": PoolingConfig(layers=(1, 3), merge_ratio=0.3),
}


@pytest.mark.parametrize("name", IN_VILT)
def test_the_way_of_the_tokens_is_that_of_a_plan(name):
    model = vilt()
    path = path_of(model, TEXT)
    rows, planned = list(path.rows(IN_VILT[name])), plan(pumer.patch(model, IN_VILT[name]), None, TEXT).layers
    assert [row.before for row in rows] == [(row.text_tokens, row.image_tokens) for row in planned]
    assert [row.after for row in rows] == [(row.text_tokens_out, row.image_tokens_out) for row in planned]
    assert any(row.reduces for row in rows)


def test_the_way_of_the_tokens_through_a_vision_encoder(tiny_meter):
    seeing, merging = Step(stack="vision", layer=0, merge_ratio=0.3), Step(layer=2, prune_ratio=0.2, merge_ratio=0.2)
    config, model = PuMerConfig(schedule=(seeing, merging)), meter(tiny_meter)
    path = path_of(model, TEXT)
    rows, planned = list(path.rows(config)), plan(pumer.patch(model, config), None, TEXT).layers
    assert [(row.place, row.before, row.after) for row in rows] == [
        (
            (row.stack, row.layer),
            (row.text_tokens, row.image_tokens),
            (row.text_tokens_out, row.image_tokens_out),
        )
        for row in planned
    ]


@pytest.mark.parametrize(
    "config",
    [
        PuMerConfig(layers=(1, 3), stack="decoder", prune_ratio=0.2, merge_ratio=0.2),
        FastVConfig(layers=(1,), prune_ratio=0.5),
        DivPruneConfig(prune_ratio=0.6),
    ],
)
def test_the_way_of_the_tokens_of_a_prompt(config):
    model = pumer.patch(TINY_DECODERS["llava"].model(), config)
    planned = plan_prompt(model, 10, (16, 33)).layers
    rows = list(Path({"decoder": 6}, 10, (16, 33)).rows(config))
    assert [row.before for row in rows] == [(row.text_tokens, row.image_tokens) for row in planned]


def test_macs_are_known_without_a_plan():
    model = vilt()
    path, found = path_of(model, TEXT), []
    for config in (NoReduction(), *(IN_VILT[name] for name in ("pumer", "tome", "l2norm"))):
        made = plan(pumer.patch(model, config), None, TEXT)
        found.append((list(path.rows(config)), [float(row.macs) for row in made.layers], float(made.macs)))
    gauge = Gauge(path, Table.fit(found))
    other = PuMerConfig(layers=(0, 1, 2, 3, 4), prune_ratio=0.05, merge_ratio=0.15)
    for config in (NoReduction(), other, IN_VILT["merging"]):
        exact = plan(pumer.patch(model, config), None, TEXT).ideal_speedup
        assert gauge(config) == pytest.approx(exact, rel=0.02)


def test_time_is_fitted():
    model = vilt()
    path, found = path_of(model, TEXT), []
    for config in (NoReduction(), *IN_VILT.values()):
        made = plan(pumer.patch(model, config), None, TEXT)
        found.append((list(path.rows(config)), [float(row.macs) for row in made.layers], float(made.macs)))
    table = Table.fit(found)
    true = Gauge(path, table, follows=0.8, each=0.01, token=0.02)
    seconds = [(config, 1 / true(config)) for config in IN_VILT.values()]
    gauge = Gauge(path, table).fitted(seconds)
    assert (gauge.follows, gauge.each, gauge.token) == pytest.approx((0.8, 0.01, 0.02), abs=1e-6)
    assert gauge.error(seconds) < 1e-6
    quicker = Gauge(path, table, follows=0.8, each=-0.01, token=0.02)  # no part may take negative time
    gauge = Gauge(path, table).fitted([(config, 1 / quicker(config)) for config in IN_VILT.values()])
    assert gauge.each == 0
    assert gauge.follows > 0


def strong(gain):
    """A schedule whose gain is said to be so much; none gains more than 4."""
    return None if gain > 4 else ToMeConfig(layers=(0,), merge_count=round(1000 * gain))


@pytest.mark.parametrize("truth", [0.8, 1.0, 1.3])
def test_what_was_estimated_wrongly_is_corrected(truth):
    def measure(configs):
        return {name: truth * config.merge_count / 2000 for name, config in configs.items()}

    config = meeting({"a": strong}, measure, 2.0)["a"]
    assert 1.0 <= measure({"a": config})["a"] <= SLACK


def test_the_nearest_is_kept_where_the_target_is_not_reached():
    def measure(configs):
        return {name: 0.5 + config.merge_count / 20_000 for name, config in configs.items()}

    found = meeting({"a": strong, "none": lambda gain: None}, measure, 2.0)
    assert set(found) == {"a"}
    assert found["a"].merge_count >= 3000
