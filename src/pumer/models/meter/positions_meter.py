"""The table of image positions at another image size."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def resize_positions(table: Tensor, rows: int) -> Tensor:
    """Resize a square position table, bicubically; what [CLS] has stays.

    Args:
        table: ``(1 + P * P, D)``, [CLS] first.
        rows: Patch rows, and columns, of the new image size.

    Returns:
        ``(1 + rows * rows, D)``, in the table's dtype.
    """
    side = round((table.shape[0] - 1) ** 0.5)
    if side == rows:
        return table
    square = table[1:].float().view(1, side, side, -1).permute(0, 3, 1, 2)
    resized = interpolate(square, size=(rows, rows), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], resized.permute(0, 2, 3, 1).flatten(1, 2)[0].to(table.dtype)])
