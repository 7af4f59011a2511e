"""Counts by length: Python's rounding, the buffer that holds every length, one copy per rule, shape and device."""

from dataclasses import dataclass

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import GRIDS, TINY, answer

import pumer
from pumer import PuMerConfig, Step
from pumer.reducers.tables import Rule, integers, ranks, tables

CPU = torch.device("cpu")
RATIOS = st.floats(0, 0.99)


@dataclass(frozen=True)
class Falls(Rule):
    """A rule that is not monotone: up to four image tokens stay, of more only one; the text is cut at three."""

    def kept(self, n):
        return n if n < 5 else 1

    def text_merges(self, n):
        return max(n - 3, 0)


def by_length(found, n, block):
    """Kept, merged away and left of n tokens; block 0 is the text."""
    return found.counts[int(found.offset[block]) + n, :3].tolist()


@given(st.builds(Step, layer=st.just(0), prune_ratio=RATIOS, merge_ratio=RATIOS, text_merge_ratio=RATIOS))
def test_every_length_is_counted_as_python_counts(step):
    T, V = 6, 11
    found = tables(step, T, V, CPU)
    for n in range(T + 1):
        assert by_length(found, n, 0) == [n, step.text_merges(n), step.text_left(n)]
    for n in range(V + 1):
        assert by_length(found, n, 1) == [step.kept(n), step.merges(n), step.left(n)]
    assert found.counts.dtype == torch.int64 and found.counts_int32.dtype == torch.int32
    assert torch.equal(found.counts[:, :3], found.counts_int32.long())
    assert torch.equal(found.counts[:, 3], found.counts[:, 0])
    assert found.text_left == max(step.text_left(n) for n in range(T + 1))
    assert found.image_left == max(step.left(n) for n in range(V + 1))
    assert found.prunes == any(step.kept(n) < n for n in range(V + 1))
    assert found.merges_image == any(step.merges(n) for n in range(V + 1))
    assert found.merges_text == any(step.text_merges(n) for n in range(T + 1))


def test_half_is_rounded_to_even():
    found = tables(Step(layer=0, prune_ratio=0.5), 0, 7, CPU)
    assert [by_length(found, n, 1)[0] for n in range(8)] == [0, 1, 1, 1, 2, 3, 3, 3]


def test_buffer_of_a_rule_that_falls_holds_the_shorter_samples():
    found = tables(Falls(), 5, 7, CPU)
    assert (found.text_left, found.image_left) == (3, 4)
    assert by_length(found, 7, 1) == [1, 0, 1] and by_length(found, 4, 1) == [4, 0, 4]


def test_made_once_for_each_rule_shape_and_device():
    rule = Step(layer=0, merge_ratio=0.2)
    found = tables(rule, 4, 9, CPU)
    assert tables(Step(layer=0, merge_ratio=0.2), 4, 9, torch.device("cpu")) is found
    others = [
        tables(Step(layer=0, merge_ratio=0.3), 4, 9, CPU),
        tables(rule, 5, 9, CPU),
        tables(rule, 4, 8, CPU),
        tables(rule, 4, 9, torch.device("meta")),
    ]
    assert all(other is not found for other in others)
    assert others[-1].counts.device.type == others[-1].at.device.type == "meta"
    assert ranks(5, CPU) is ranks(5, CPU) and ranks(5, CPU).tolist() == [0, 1, 2, 3, 4]
    assert integers(CPU, 3, 1) is integers(CPU, 3, 1) and integers(CPU, 3, 1).tolist() == [3, 1]


def test_made_under_inference_mode_they_serve_training():
    rule = Step(layer=0, prune_ratio=0.123, merge_ratio=0.321)
    with torch.inference_mode():
        found, constants = tables(rule, 3, 8, CPU), (ranks(1234, CPU), integers(CPU, 12, 34))
    fields = [field for field in found if isinstance(field, torch.Tensor)]
    assert not any(tensor.is_inference() for tensor in (*fields, *constants))


@pytest.mark.parametrize("backbone", TINY)
def test_a_model_trains_after_it_was_asked_under_inference_mode(backbone):
    """With ratios that no other test has: the tables are made in the first forward."""
    case = TINY[backbone]
    config = PuMerConfig(layers=(0, 1), prune_ratio=0.2345, merge_ratio=0.3456, text_merge_ratio=0.2468)
    model, inputs = pumer.patch(case.build(), case.fit(config)), case.batch(GRIDS)
    with torch.inference_mode():
        expected = answer(model, inputs).clone()
    output = answer(model, inputs)
    output.square().sum().backward()
    torch.testing.assert_close(output.detach(), torch.tensor(expected.tolist()))
    assert all(p.grad is not None for n, p in case.root(model).named_parameters() if ".0." in n and "encoder" in n)


@pytest.mark.parametrize("config", [e.config for es in tiny.EXAMPLES.values() for e in es], ids=lambda c: c.method)
def test_rules_of_all_methods_leave_a_token_and_no_more_than_there_were(config):
    rules = [r for r in (config, *getattr(config, "schedule", ())) if isinstance(r, Rule)]
    for rule in rules:
        hash(rule)
        for n in range(1, 150):
            for kept, merged in ((rule.kept(n), rule.merges(n)), (n, rule.text_merges(n))):
                assert 1 <= kept - merged <= kept <= n and merged >= 0
        assert rule.kept(0) == rule.merges(0) == rule.text_merges(0) == 0


def test_a_fake_tensor_is_not_kept():
    """What a memory estimator runs must not be found again by a forward with data."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    rule, device = Step(layer=0, merge_ratio=0.123), torch.device("cpu")
    with FakeTensorMode():
        tables(rule, 3, 17, device)
        ranks(12_345, device)
    with torch.device("meta"):
        assert ranks(12_346, device).device == device
    assert type(tables(rule, 3, 17, device).counts) is torch.Tensor
    assert ranks(12_345, device).tolist()[-1] == 12_344
