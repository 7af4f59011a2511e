"""One modality of a batch, encoded by itself: what `MeterModel.fuse` takes two of, and what can be kept for later."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class MeterEncoding:
    """One modality of a batch, encoded by itself and projected to the width of the cross-modal layers.

    Attributes:
        states: ``(B, N, D)``, without the modality embedding.
        mask: ``(B, N)`` bool, False for padding.
        size: ``(B, N)`` patches each token stands for; None: one each.
        decisions: What the vision encoder's reductions did, in their order.
        grid: Patch rows and columns of an image; None for text.
    """

    states: Tensor
    mask: Tensor
    size: Tensor | None = None
    decisions: tuple[Any, ...] = ()
    grid: tuple[int, int] | None = None

    def select(self, index: Tensor | Sequence[int]) -> "MeterEncoding":
        """The encodings of some samples, in the order asked for; a sample may be asked for many times.

        Args:
            index: ``(K,)`` positions in the batch.

        Returns:
            An encoding of K samples.

        Example:
            >>> scores = model.fuse(texts, images.select([0] * len(texts.states)))  # image 0 with every text
        """
        return self._selected(torch.as_tensor(index, dtype=torch.int64, device=self.states.device))

    def part(self, rows: slice) -> "MeterEncoding":
        """The encodings of consecutive samples; no data is copied."""
        return self._selected(rows)

    @classmethod
    def of_slices(cls, parts: Sequence["MeterEncoding"]) -> "MeterEncoding":
        """The encodings of a batch from those of its slices."""
        first = parts[0]
        if len(parts) == 1:
            return first
        decisions = zip(*(part.decisions for part in parts), strict=True)
        return dataclasses.replace(
            first,
            states=torch.cat([part.states for part in parts]),
            mask=torch.cat([part.mask for part in parts]),
            size=None if first.size is None else torch.cat([part.size for part in parts if part.size is not None]),
            decisions=tuple((each[0][0], each[0][1].of_slices([made for _, made in each])) for each in decisions),
        )

    def _selected(self, index: Tensor | slice) -> "MeterEncoding":
        rest = {name: _select(getattr(self, name), index) for name in ("states", "mask", "size", "decisions")}
        return dataclasses.replace(self, **rest)


def _select(value: Any, index: Tensor | slice) -> Any:
    """Rows of every tensor inside dataclasses and tuples; anything else as it is."""
    if isinstance(value, Tensor):
        if value.ndim == 0:
            return value
        return value[index] if isinstance(index, slice) else value.index_select(0, index.to(value.device))
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_select(part, index) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: _select(getattr(value, field.name), index) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return value
