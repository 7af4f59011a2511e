"""Distillation of logits and of hidden states, against plain loops by their definitions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import GRIDS, TINY

import pumer
from pumer.profiling.named_models import variant
from pumer.settings.train import DistillationConfig
from pumer.training.distillation import distillation_loss, divergence, final_tokens, hidden_divergence
from pumer.utils.errors import InputError

BACKBONES = list(TINY)


def softmax(row, temperature):
    exponentials = [math.exp(value / temperature) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def plain_divergence(student, teacher, temperature):
    """KL(teacher || student) by its definition, one example at a time."""
    total = 0.0
    for student_row, teacher_row in zip(student, teacher, strict=True):
        p, q = softmax(teacher_row, temperature), softmax(student_row, temperature)
        total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
    return total / len(student) * temperature**2


@given(
    st.integers(1, 4),
    st.integers(2, 6),
    st.floats(0.5, 4),
    st.floats(0, 2),
    st.floats(0, 2),
    st.integers(0, 1000),
)
def test_loss_equals_its_definition(batch, answers, temperature, task_weight, weight, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, batch, answers, generator=generator)
    kl = plain_divergence(student.tolist(), teacher.tolist(), temperature)
    assert divergence(student, teacher, temperature).item() == pytest.approx(kl, abs=1e-5)
    config = DistillationConfig(temperature=temperature, task_weight=task_weight, weight=weight)
    loss = distillation_loss(torch.tensor(0.7), student, teacher, config).item()
    assert loss == pytest.approx(task_weight * 0.7 + weight * kl, abs=1e-4)


def test_defaults_are_the_papers():
    assert DistillationConfig() == DistillationConfig(temperature=1, task_weight=1, weight=1)


def test_gradient_flows_into_the_student_alone():
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    divergence(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_half_precision_is_computed_in_float32():
    student, teacher = torch.randn(2, 3, 5)
    assert divergence(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("values", [{"temperature": 0}, {"temperature": -1}, {"weight": -1}, {"task_weight": -0.1}])
def test_values_without_a_meaning_are_refused(values):
    with pytest.raises(InputError, match="distillation"):
        DistillationConfig(**values)


def normalised(row):
    mean = sum(row) / len(row)
    variance = sum((value - mean) ** 2 for value in row) / len(row)
    return [(value - mean) / math.sqrt(variance + 1e-5) for value in row]


def plain_hidden(trace, student, teacher):
    """The definition: for every slot that is left, the mean of the teacher's states at its members' places."""
    total = 0.0
    for sample in range(len(trace.mask)):
        errors = []
        for slot in range(trace.size.shape[1]):
            members = [n for n, owner in enumerate(trace.owner[sample].tolist()) if owner == slot]
            if not members:
                continue
            width = len(student[sample][slot])
            rows = [teacher[sample][n] for n in members]
            target = [sum(row[d] for row in rows) / len(rows) for d in range(width)]
            pairs = zip(normalised(student[sample][slot]), normalised(target), strict=True)
            errors.append(sum((own - other) ** 2 for own, other in pairs) / width)
        total += sum(errors) / len(errors)
    return total / len(trace.mask)


def reduced(backbone, vision=True):
    steps = [pumer.Step(layer=layer, prune_ratio=0.2, merge_ratio=0.3, text_merge_ratio=0.3) for layer in (0, 1)]
    if vision:
        steps.append(pumer.Step(stack="vision", layer=1, merge_ratio=0.3))
    return TINY[backbone].fit(pumer.PuMerConfig(schedule=tuple(steps)))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", [0, "two images"])
def test_hidden_divergence_equals_its_definition(backbone, head):
    tiny = TINY[backbone]
    name = next(iter(tiny.two_images)) if head else tiny.heads[0]
    teacher = pumer.patch(tiny.build(name), pumer.NoReduction())
    student = pumer.patch(tiny.build(name, seed=1), reduced(backbone))
    inputs = tiny.batch(GRIDS, name)
    with torch.no_grad(), final_tokens(teacher) as target:
        teacher(**inputs)
    with torch.no_grad(), final_tokens(student) as seen, pumer.trace(student) as trace:
        student(**inputs)
    assert len(seen) == len(target) == len(trace.forwards) == (2 if head else 1)
    for own, other, forward in zip(seen, target, trace.forwards, strict=True):
        assert (forward.pruned_at >= 0).any()
        assert (forward.merged_at >= 0).any()
        expected = plain_hidden(forward, own.states.tolist(), other.states.tolist())
        assert hidden_divergence(own, other).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_an_unreduced_student_differs_in_nothing(backbone):
    model = TINY[backbone].build()
    teacher, student = (variant(model, pumer.NoReduction()) for _ in range(2))
    inputs = TINY[backbone].batch(GRIDS)
    with final_tokens(teacher) as target:
        teacher(**inputs)
    with final_tokens(student) as seen:
        student(**inputs)
    assert hidden_divergence(seen[0], target[0]).item() < 1e-9


@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradient_of_hidden_states_flows_into_the_student_alone(backbone):
    model = TINY[backbone].build()
    teacher, student = variant(model, pumer.NoReduction()), pumer.patch(TINY[backbone].build(seed=1), reduced(backbone))
    inputs = TINY[backbone].batch(GRIDS)
    before = set(dict(student.named_parameters()))
    with torch.inference_mode(), final_tokens(teacher) as target:
        teacher(**inputs)
    with final_tokens(student) as seen:
        student(**inputs)
    hidden_divergence(seen[0], target[0]).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    layers = [parameter for name, parameter in student.named_parameters() if "encoder" in name]
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in layers)
    assert set(dict(student.named_parameters())) == before  # nothing was added


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_batch_does_not_matter(backbone):
    """Padding and the other examples: what a batch gives is the mean of what its examples give alone."""
    tiny = TINY[backbone]
    models = pumer.patch(tiny.build(), pumer.NoReduction()), pumer.patch(tiny.build(seed=1), reduced(backbone))
    teacher, student = (model.double() for model in models)

    def loss(grids, seed=0, **padding):
        inputs = tiny.batch(grids, seed=seed, **padding)
        inputs["pixel_values"] = inputs["pixel_values"].double()
        with torch.no_grad(), final_tokens(teacher) as target, final_tokens(student) as seen:
            teacher(**inputs), student(**inputs)
        return hidden_divergence(*seen, *target).item()

    alone = [loss([grid], seed=i) for i, grid in enumerate(GRIDS)]
    assert loss(GRIDS, text=14) == pytest.approx(sum(alone) / len(alone), rel=1e-5)


def test_hooks_are_gone_afterwards():
    model = pumer.patch(TINY["vilt"].build(), pumer.NoReduction())
    with final_tokens(model) as seen:
        pass
    model(**TINY["vilt"].batch(GRIDS))
    assert seen == []
