import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pumer.settings.train import DistillationConfig
from pumer.training.distill import distillation_loss, divergence
from pumer.utils.errors import InputError


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
    config = DistillationConfig(temperature, task_weight, weight)
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
