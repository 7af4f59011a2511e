"""The position table at other image sizes."""

import torch

from pumer.models.meter.positions_meter import resize_positions


def test_the_same_size_is_the_same_table():
    table = torch.randn(1 + 9, 4)
    assert resize_positions(table, 3) is table


def test_cls_stays_and_the_grid_keeps_its_orientation():
    row, column = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    table = torch.cat([torch.tensor([[7.0, -7.0]]), torch.stack([row, column], dim=2).flatten(0, 1)])
    resized = resize_positions(table.to(torch.bfloat16), 12)
    assert (resized.dtype, resized.shape) == (torch.bfloat16, (145, 2))
    assert resized[0].tolist() == [7, -7]
    grid = resized[1:].float().view(12, 12, 2)
    assert (grid[1:, :, 0] - grid[:-1, :, 0] > -0.1).all()  # rows count downwards, columns to the right
    assert (grid[:, 1:, 1] - grid[:, :-1, 1] > -0.1).all()
    assert grid[3:9, 0, 0].tolist() == grid[3:9, 11, 0].tolist()
