"""A third family, of which the library knows one entry in BACKBONES, goes through what the others go through."""

import copy

import pytest
import torch
from tiny import GRIDS, TINY
from tiny.toy import TOY, ToyConfig, ToyForQuestionAnswering

import pumer
from pumer import InputError, NoReduction, PuMerConfig, RandomPruningConfig
from pumer.backbones import BACKBONES, backbone_of, roots
from pumer.profiling import named_models
from pumer.profiling.timing import time_split
from pumer.settings.train import OptimizerConfig
from pumer.tasks import TASKS
from pumer.training.distillation import final_tokens
from pumer.training.optimizer import parameter_groups

CONFIG = PuMerConfig(layers=(0, 1), prune_ratio=0.2, merge_ratio=0.2, text_merge_ratio=0.2)


@pytest.fixture(autouse=True)
def _entry(monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", TOY)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ToyForQuestionAnswering(ToyConfig(num_labels=5)).eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(9) < torch.tensor([[9], [6], [4]])).long()
    words = torch.randint(1, 50, (3, 9), generator=generator) * mask
    return {
        "input_ids": words,
        "attention_mask": mask,
        "pixel_values": torch.randn(3, 3, 48, 48, generator=generator),
    }


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def test_patched_and_unpatched(model, inputs):
    plain = logits(model, inputs)
    torch.testing.assert_close(logits(pumer.patch(model, NoReduction()), inputs), plain, atol=1e-5, rtol=0)
    reduced = logits(pumer.patch(model, CONFIG), inputs)
    assert (reduced - plain).abs().max() > 1e-3
    alone = logits(model, {name: x[1:2, :6] if x.ndim == 2 else x[1:2] for name, x in inputs.items()})
    torch.testing.assert_close(alone[0], reduced[1], atol=1e-5, rtol=0)
    assert torch.equal(logits(copy.deepcopy(model), inputs), reduced)
    assert torch.equal(logits(pumer.unpatch(model), inputs), plain)
    assert [(type(root).__name__, family) for root, family in roots(model)] == [("ToyModel", TOY)]


def test_a_layer_it_has_not_is_refused(model):
    with pytest.raises(InputError, match="fusion layer 3 does not exist; toy has 3"):
        pumer.patch(model, PuMerConfig(layers=(3,), prune_ratio=0.1))


def test_planned_traced_and_timed(model, inputs):
    plan = pumer.plan(pumer.patch(model, CONFIG), text_length=9)
    tokens = [(row.text_tokens_out, row.image_tokens_out) for row in plan.layers]
    assert plan.ideal_speedup > 1 and len(tokens) == 3
    with pumer.trace(model) as trace:
        whole = logits(model, {**inputs, "attention_mask": torch.ones(3, 9, dtype=torch.int64)})
    (forward,) = trace.forwards
    left = [[int(text.max()), int(image.max())] for text, image in forward.tokens_per_place]  # a plan counts slots
    assert (torch.tensor(left) <= torch.tensor(tokens[:2])).all() and tokens[2] == tokens[1] and len(whole) == 3
    assert forward.grid.tolist() == [[6, 6]] * 3 and len(forward.describe(0, 12)) > 0
    with final_tokens(model) as found:
        logits(model, inputs)
    assert len(found) == 1 and found[0].states.shape[0] == 3
    assert time_split(model, inputs, runs=1).keys() == {"embedding", "reduce", "rest"}


def test_saved_and_loaded(model, inputs, tmp_path):
    expected = logits(pumer.patch(model, CONFIG), inputs)
    pumer.save(model, tmp_path)
    again = pumer.load(tmp_path)
    assert type(again) is ToyForQuestionAnswering and pumer.reduction(again) == CONFIG
    assert torch.equal(logits(again, inputs), expected)


def test_compiled_and_measured_like_the_others(model, inputs):
    fast = pumer.compile(pumer.patch(model, CONFIG), backend="eager")
    torch.testing.assert_close(fast(**inputs).logits.detach(), logits(model, inputs), atol=1e-5, rtol=0)
    preset = named_models.model_from("preset:toy")
    assert type(preset) is ToyForQuestionAnswering and backbone_of(preset) is TOY
    assert named_models.default_image_size("preset:toy", preset) == 48


def test_it_learns_the_tasks_it_has_a_head_for(model, inputs):
    assert [name for name, task in TASKS.items() if "toy" in task.models()] == ["vqav2", "snli_ve"]
    pumer.patch(model, CONFIG).train()
    names = {name: parameter for name, parameter in model.named_parameters()}
    config = OptimizerConfig(lr=1.0, head_factor=10.0, encoder_factor=0.1, weight_decay=0.0)
    groups = parameter_groups(model, "toy", ("classifier.",), (), config)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert rates[id(names["toy.words.weight"])] == rates[id(names["toy.patches.bias"])] == pytest.approx(0.1)
    assert rates[id(names["toy.encoder.layers.0.inner.weight"])] == 1 and rates[id(names["classifier.bias"])] == 10
    model.gradient_checkpointing_enable()
    model(**inputs).logits.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in names.values())


@pytest.mark.parametrize("stack", ["vision", "fusion"])
def test_a_reducer_sees_which_layer_it_is_in(stack, monkeypatch):
    seen, decide = [], RandomPruningConfig.decide
    monkeypatch.setattr(
        RandomPruningConfig, "decide", lambda self, cues: (seen.append(cues.layer), decide(self, cues))[1]
    )
    model = pumer.patch(TINY["meter"].build(), RandomPruningConfig(layers=(0, 2), stack=stack, prune_ratio=0.2))
    logits(model, TINY["meter"].batch(GRIDS))
    assert seen == [0, 2]
