"""What the trainings of the small models share."""

import pytest
import torch
from torch import nn

from benchmarks.pretrain_small import training
from benchmarks.pretrain_small.settings import LlavaTrainingConfig, PretrainConfig


@pytest.mark.parametrize("config", [PretrainConfig(lr=0.5, fall_at=0.4), LlavaTrainingConfig(lr=0.5, fall_at=0.4)])
def test_the_learning_rate_rises_stays_and_falls(config):
    rates = [training.rate(config, step, progress, 10) for step, progress in ((0, 0.0), (4, 0.1), (9, 0.4), (99, 0.4))]
    assert rates == pytest.approx([0.05, 0.25, 0.5, 0.5])
    assert training.rate(config, 99, 0.7, 10) == pytest.approx(0.5 * 0.51)
    assert training.rate(config, 99, 1.0, 10) == pytest.approx(0.5 * 0.02)


def test_a_step_lowers_the_weighted_loss_and_frozen_weights_stay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    before, x = model[0].weight.clone(), torch.randn(8, 3)
    optimizer = training.optimizer_of(model, LlavaTrainingConfig(weight_decay=0.1))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert [[p.shape for p in group["params"]] for group in optimizer.param_groups] == [[(1, 3)], [(1,)]]

    def parts():
        return {"a": model(x).square().mean(), "b": model(x).abs().mean()}

    def loss():
        return sum(weight * parts()[name].item() for name, weight in (("a", 1.0), ("b", 0.5)))

    first = loss()
    for _ in range(20):
        training.update(optimizer, parts(), {"a": 1.0, "b": 0.5}, 0.01)
    assert loss() < first and torch.equal(model[0].weight, before)


def test_averages_follow_losses():
    average = {}
    for value in (1.0, 2.0):
        training.follow(average, {"answer": torch.tensor(value)}, 0.1)
    assert average == pytest.approx({"answer": 1.1})
    assert training.listed(average) == "answer 1.100"
