"""Learning rates of a model's parts."""

import pytest
import torch

from pumer.patching import patch
from pumer.reducers import DynamicViTConfig
from pumer.settings.train import OptimizerConfig
from pumer.tasks import VQAv2
from pumer.training.optimizer import parameter_groups
from pumer.utils.errors import InputError


def rates(folder, **settings):
    """Learning rate and weight decay of every parameter; those with "bias" in their name do not decay."""
    model = VQAv2.model(str(folder), ("red", "blue"))
    decayed = {name for name, _ in model.named_parameters() if "bias" not in name}
    config = OptimizerConfig(lr=1.0, end_lr=0.0, weight_decay=0.5, **settings)
    groups = parameter_groups(model, model.config.model_type, VQAv2.head, decayed, config)
    found = {id(member): (group["lr"], group["weight_decay"]) for group in groups for member in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    return {name: found[id(parameter)] for name, parameter in model.named_parameters()}, groups


METER_ENCODERS = ("meter.text_model.", "meter.vision_model.", "meter.modality_embeddings.")


def test_meters_parts_learn_apart(tiny_meter):
    found, groups = rates(tiny_meter, encoder_factor=0.2, head_factor=10.0)
    assert len(groups) == 6
    for name, (lr, decay) in found.items():
        expected = 10.0 if name.startswith("classifier.") else 0.2 if name.startswith(METER_ENCODERS) else 1.0
        assert lr == pytest.approx(expected), name
        assert decay == (0.0 if "bias" in name else 0.5), name
    cross = {name.split(".")[1] for name, (lr, _) in found.items() if lr == 1.0}
    assert cross == {"text_projection", "image_projection", "encoder", "text_pooler", "image_pooler"}


def test_vilts_parts_learn_apart(tiny_vilt):
    found, _ = rates(tiny_vilt, encoder_factor=0.5)
    assert {name.split(".")[1] for name, (lr, _) in found.items() if lr == 0.5} == {"embeddings"}


def test_parts_that_learn_alike_share_a_group(tiny_meter):
    assert len(rates(tiny_meter, head_factor=1.0)[1]) == 2
    assert len(rates(tiny_meter)[1]) == 4


def test_a_reductions_own_weights_learn_apart(tiny_vilt):
    model = patch(VQAv2.model(str(tiny_vilt), ("red", "blue")), DynamicViTConfig(layers=(1,), prune_ratio=0.3))
    config = OptimizerConfig(lr=1.0, end_lr=0.0, head_factor=2.0, reduction_factor=30.0)
    groups = parameter_groups(model, "vilt", VQAv2.head, set(), config)
    found = {id(member): group["lr"] for group in groups for member in group["params"]}
    apart = {name for name, parameter in model.named_parameters() if found[id(parameter)] == 30.0}
    assert apart == {name for name, _ in model.named_parameters() if ".reducer." in name} != set()


def test_frozen_parameters_are_left_out(tiny_vilt):
    model = VQAv2.model(str(tiny_vilt), ("red", "blue"))
    model.vilt.requires_grad_(False)
    groups = parameter_groups(model, "vilt", VQAv2.head, set(), OptimizerConfig())
    assert sum(len(group["params"]) for group in groups) == len(list(model.classifier.parameters()))
    torch.optim.AdamW(groups)


@pytest.mark.parametrize(
    "values",
    [
        {"lr": 0},
        {"lr": 1e-8},
        {"warmup": 1.0},
        {"betas": (0.9, 1.0)},
        {"encoder_factor": -1.0},
        {"head_factor": -1.0},
        {"reduction_factor": -1.0},
        {"weight_decay": -0.1},
        {"power": 0.0},
        {"max_grad_norm": 0.0},
        {"lr": float("nan")},
    ],
)
def test_values_without_a_meaning_are_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        OptimizerConfig(**values)
