"""Choosing samples of an encoding."""

from dataclasses import dataclass

import torch

from pumer.models.meter import MeterEncoding


@dataclass(frozen=True)
class Note:
    """What a reduction may leave behind."""

    index: torch.Tensor
    bias: torch.Tensor | None
    weighted: bool
    parts: tuple[torch.Tensor, int]


def test_everything_about_a_sample_goes_along():
    rows = torch.arange(3)
    note = Note(rows[:, None], None, True, (rows * 10, 7))
    encoding = MeterEncoding(
        states=torch.randn(3, 4, 2),
        mask=torch.rand(3, 4) > 0.5,
        size=torch.rand(3, 4),
        decisions=((("vision", 2), note),),
        grid=(2, 2),
    )
    chosen = encoding.select([2, 2, 0, 1])
    order = torch.tensor([2, 2, 0, 1])
    assert torch.equal(chosen.states, encoding.states[order])
    assert torch.equal(chosen.mask, encoding.mask[order])
    assert torch.equal(chosen.size, encoding.size[order])
    assert chosen.grid == (2, 2)
    place, kept = chosen.decisions[0]
    assert (place, kept.bias, kept.weighted, kept.parts[1]) == (("vision", 2), None, True, 7)
    assert torch.equal(kept.index[:, 0], order)
    assert torch.equal(kept.parts[0], order * 10)


def test_gradients_pass():
    states = torch.randn(2, 3, 4, requires_grad=True)
    MeterEncoding(states, torch.ones(2, 3, dtype=torch.bool)).select(torch.tensor([1, 1])).states.sum().backward()
    assert torch.equal(states.grad[:, 0, 0], torch.tensor([0.0, 2.0]))
