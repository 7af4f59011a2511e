"""DynamicViT: hard samples with soft gradients in training, the best tokens otherwise; weights that are saved apart."""

import copy
import math
import pickle
from dataclasses import replace

import pytest
import tiny
import torch
from reducers.prompts import prompt_cues
from tiny import GRIDS, TINY, answer

import pumer
from pumer import InputError
from pumer.reducers import DynamicViTConfig
from pumer.reducers.cues import Cues
from pumer.reducers.dynamicvit import TokenPredictor
from pumer.reducers.learned import take_losses
from pumer.tokens import Tokens, attention_bias
from pumer.training.distillation import final_tokens, hidden_divergence

CONFIG = DynamicViTConfig(layers=(0, 1), prune_ratio=0.4)


def fitted(backbone):
    return TINY[backbone].fit(CONFIG)


def predictors(model):
    return [module for module in model.modules() if isinstance(module, TokenPredictor)]


@pytest.mark.parametrize("backbone", TINY)
def test_training_hides_tokens_and_teaches_the_predictors(backbone):
    case = TINY[backbone]
    model, inputs = pumer.patch(case.build(), fitted(backbone)).train(), case.batch(GRIDS)
    torch.manual_seed(0)
    answer(model, inputs).square().mean().backward()
    for predictor in predictors(model):
        assert predictor.score.weight.grad.abs().sum() > 0, "the task teaches every predictor"
    model.zero_grad()
    owed = take_losses(model)
    assert owed.requires_grad and owed >= 0
    assert take_losses(model) is None, "taken once"
    owed_again = answer(model, inputs).mean() * 0 + take_losses(model)
    owed_again.backward()
    assert all(predictor.score.bias.grad.abs().sum() > 0 for predictor in predictors(model))


@pytest.mark.parametrize("backbone", TINY)
def test_hidden_tokens_count_for_nothing(backbone):
    """A training forward whose samples are forced to the best tokens computes what inference computes."""
    case = TINY[backbone]
    model, inputs = pumer.patch(case.build(), fitted(backbone)), case.batch([(6, 6, 6)])
    for predictor in predictors(model):  # in order: what a later one sees follows from the earlier
        force_the_best(predictor, lambda: answer(model, inputs))
    with torch.no_grad(), pumer.trace(model) as trace:
        expected = answer(model, inputs)
    assert (trace.forwards[0].pruned_at >= 0).any()
    for predictor in predictors(model):
        predictor.train()  # alone: nothing else is left to chance
    torch.testing.assert_close(answer(model, inputs), expected, atol=1e-3, rtol=1e-3)
    for predictor in predictors(model):
        with torch.no_grad():
            predictor.score.bias.fill_(1e6)  # nothing is hidden: another answer, so that the one above could fail
    assert (answer(model, inputs) - expected).abs().max() > 1e-2


def force_the_best(predictor, forward):
    """Shift and stretch the scores so that only the tokens that inference keeps are above zero, and far."""
    seen = []
    handle = predictor.register_forward_hook(lambda module, arguments, logits: seen.append((arguments[1], logits)))
    with torch.no_grad():
        forward()
        handle.remove()
        ((mask, logits),) = seen
        ranked = logits[0, 1:][mask[0, 1:]].sort(descending=True).values  # without [CLS], which stays anyway
        stays = predictor.config.kept(int(mask.sum())) - 1
        predictor.score.bias.sub_((ranked[stays - 1] + ranked[stays]) / 2)
        for parameter in (predictor.score.weight, predictor.score.bias):
            parameter.mul_(1e7)


def image_alone(mask):
    """Cues of random image states with this mask ``(B, V)``, and no text."""
    states = torch.randn(*mask.shape, 8)
    return Cues(Tokens((states,), mask.float(), (attention_bias(mask),), 0, lambda: torch.where(mask, 0, -1)))


def test_samples_start_at_the_ratio():
    predictor = DynamicViTConfig(layers=(0,), prune_ratio=0.4).learned({"fusion": 8})["fusion", 0]
    with torch.no_grad():
        predictor.score.weight.zero_()
    mask = torch.ones(1, 4001, dtype=torch.bool)
    torch.manual_seed(0)
    decision = predictor.train().decide(image_alone(mask))
    assert abs((decision.bias > -1).float().mean().item() - 0.6) < 0.03


def test_the_ratio_loss_is_the_squared_miss():
    predictor = DynamicViTConfig(layers=(0,), prune_ratio=0.25, ratio_weight=3.0).learned({"fusion": 8})["fusion", 0]
    with torch.no_grad():
        predictor.score.weight.zero_()
        predictor.score.bias.fill_(-1e4)  # drops everything but [CLS]
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    decision = predictor.train().decide(image_alone(mask))
    expected = 3.0 * ((1 / 4 - 0.75) ** 2 + (1 / 2 - 0.75) ** 2) / 2
    assert abs(float(take_losses(predictor).detach()) - expected) < 1e-6
    assert (decision.bias[0, 0, 0] > -1).tolist() == [True, False, False, False]


@pytest.mark.parametrize("backbone", TINY)
def test_learned_weights_are_saved_apart_and_come_back(backbone, tmp_path):
    case = TINY[backbone]
    model, inputs = pumer.patch(case.build(), fitted(backbone)), case.batch(GRIDS)
    with torch.no_grad():
        for parameter in predictors(model)[0].parameters():
            parameter.normal_()
    expected = answer(model, inputs)
    pumer.save(model, tmp_path / "m")
    assert (tmp_path / "m" / "reduction.safetensors").exists()
    assert torch.equal(answer(pumer.load(tmp_path / "m"), inputs), expected)
    plain = type(case.build()).from_pretrained(tmp_path / "m")
    assert not predictors(plain)
    (tmp_path / "m" / "reduction.safetensors").unlink()
    with pytest.raises(InputError, match=r"reduction.safetensors.*missing: .*fusion_0"):
        pumer.load(tmp_path / "m")


@pytest.mark.parametrize("backbone", TINY)
def test_both_pictures_of_a_pair_pay(backbone):
    case = TINY[backbone]
    (head,) = case.two_images
    model = pumer.patch(case.build(head), fitted(backbone)).train()
    for _ in range(3):  # a loop that never asks does not hoard
        answer(model, case.batch(GRIDS, head))
    owed = [list(predictor.losses) for predictor in predictors(model)]
    assert [len(losses) for losses in owed] == [2, 2]
    expected = sum(loss.item() for losses in owed for loss in losses) / 4
    assert take_losses(model).item() == pytest.approx(expected)


@pytest.mark.parametrize("compiled", [False, True])
def test_every_forward_of_training_draws_anew(compiled):
    case, config = TINY["vilt"], DynamicViTConfig(layers=(0,), prune_ratio=0.4)
    model, inputs = pumer.patch(case.build(layers=1), config).train(), case.batch(GRIDS)
    torch._dynamo.reset()
    run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    owed = []
    for _ in range(3):
        answer(run, inputs)
        owed.append(take_losses(model).item())
    assert len(set(owed)) == 3


def test_about_as_many_tokens_stay_as_the_scores_say():
    """Sampling: a token with logit s stays with probability sigmoid(s)."""
    predictor = DynamicViTConfig(layers=(0,), prune_ratio=0.25).learned({"fusion": 8})["fusion", 0].train()
    with torch.no_grad():
        predictor.score.weight.zero_()
        predictor.score.bias.fill_(1.0)
    mask = torch.ones(40, 101, dtype=torch.bool)
    decision = predictor.decide(image_alone(mask))
    stays = (decision.bias[:, 0, 0, 1:] > -1).double().mean().item()
    assert stays == pytest.approx(1 / (1 + math.exp(-1.0)), abs=0.03)  # 4,000 draws: four standard deviations


def test_a_prompt_without_an_image_owes_nothing():
    (predictor,) = DynamicViTConfig(layers=(0,), prune_ratio=0.25).learned({"fusion": 5}).values()
    images, words = [(0, False), (1, False), (1, False), (1, False)], [(0, False)] * 4
    owed = []
    for prompts in ([words], [images], [images, words]):
        cues = prompt_cues(prompts, 0, True, causal=True)
        tokens = cues.tokens.with_streams(cues.tokens.states.float())
        torch.manual_seed(0)
        predictor.train().decide(replace(cues, tokens=tokens))
        owed.append(take_losses(predictor).item())
    assert owed[0] == 0 and owed[1] > 0 and all(map(math.isfinite, owed))


def test_a_model_is_copied_and_pickled_between_forward_and_backward():
    case = TINY["vilt"]
    model, inputs = pumer.patch(case.build(), fitted("vilt")).train(), case.batch(GRIDS)
    answer(model, inputs)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert take_losses(twin) is None
    assert take_losses(model) is not None


def test_what_was_learned_stays_with_another_ratio():
    case = TINY["vilt"]
    model, inputs = pumer.patch(case.build(), fitted("vilt")), case.batch(GRIDS)
    with torch.no_grad():
        for predictor in predictors(model):
            predictor.own.weight.normal_()
    expected, learned = answer(model, inputs), [predictor.own.weight.clone() for predictor in predictors(model)]
    pumer.patch(model, DynamicViTConfig(layers=(1, 2), prune_ratio=0.7))
    assert torch.equal(predictors(model)[0].own.weight, learned[1])
    fresh = DynamicViTConfig(layers=(1, 2), prune_ratio=0.7).learned({"fusion": 32})["fusion", 2]
    assert torch.equal(predictors(model)[1].own.weight, fresh.own.weight)
    pumer.patch(model, fitted("vilt"))
    assert torch.equal(predictors(model)[1].own.weight, learned[1])
    pumer.patch(pumer.patch(model, pumer.NoReduction()), fitted("vilt"))
    assert not torch.equal(answer(model, inputs), expected), "another method forgets it"


def test_hidden_tokens_are_not_distilled():
    """In training, the divergence is that of the tokens that stay, as if the others were gone."""
    case = TINY["vilt"]
    model, teacher = pumer.patch(case.build(), fitted("vilt")), pumer.patch(case.build(seed=1), pumer.NoReduction())
    inputs = case.batch([(6, 6, 6)])
    with torch.no_grad(), final_tokens(teacher) as taught, final_tokens(model) as seen:
        answer(teacher, inputs), answer(model, inputs)
    (taught,), (gone,) = taught, seen
    hidden = torch.where((gone.source < 0)[:, None, None, :], -14.0, 0.0)
    states = torch.zeros(gone.source.shape[1], 32).index_copy(0, (gone.source[0] >= 0).nonzero()[:, 0], gone.states[0])
    slots = torch.arange(states.shape[0])[None]
    there = Tokens((states[None],), torch.ones(1, len(states)), (hidden,), gone.text_length, lambda: slots)
    torch.testing.assert_close(hidden_divergence(there, taught), hidden_divergence(gone, taught), atol=1e-4, rtol=1e-4)


def test_fresh_predictors_leave_every_generator_alone(monkeypatch):
    model, config = tiny.TINY["vilt"].build(), fitted("vilt")
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPU's generator was seeded"))
    before = torch.get_rng_state()
    pumer.patch(model, config)
    assert torch.equal(torch.get_rng_state(), before)


def test_moves_and_types_follow_the_model():
    model = pumer.patch(tiny.TINY["vilt"].build().double(), fitted("vilt"))
    assert all(p.dtype == torch.float64 for module in predictors(model) for p in module.parameters())
    assert predictors(pumer.unpatch(model)) == []


@pytest.mark.parametrize(
    ("settings", "words"), [({"ratio_weight": -1}, ["ratio_weight", "-1"]), ({"temperature": 0}, ["temperature", "0"])]
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(InputError) as caught:
        DynamicViTConfig(layers=(1,), prune_ratio=0.1, **settings)
    assert all(word in str(caught.value) for word in words)
