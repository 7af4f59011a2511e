"""Few shapes for many inputs: batch, words and images padded to bucket sizes, and outputs cut back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._pytree import tree_map_only

from pumer.utils.errors import InputError

TEXT = ("input_ids", "attention_mask", "token_type_ids")
IMAGE = ("pixel_values", "pixel_mask")


@dataclass(frozen=True)
class Buckets:
    """The sizes that inputs are padded to; each combination that occurs is one graph.

    A size above the largest bucket stays as it is, and has a graph of its own; so an empty tuple pads nothing.

    Attributes:
        batch: Examples per forward, ascending; None: powers of two.
        words: Words, special tokens counted, ascending; None: multiples of 8 up to 40, of 16 above. Never more than the
            model has positions for.
        grid: Patch rows and columns of images that have a ``pixel_mask`` are rounded up to multiples of this.

    Raises:
        InputError: For sizes that are not ascending integers above 0, and a ``grid`` that is not one.

    Example:
        >>> Buckets(batch=(1, 8, 64)).batch_size(5)
        8
    """

    batch: tuple[int, ...] | None = None
    words: tuple[int, ...] | None = None
    grid: int = 2

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("batch", "words"):
            sizes = getattr(self, name)
            if sizes is None:
                continue
            if not isinstance(sizes, list | tuple) or not all(map(_positive, sizes)) or [*sizes] != sorted({*sizes}):
                raise InputError(f"{name} of the buckets is {sizes!r}; give ascending integers above 0, such as (1, 8)")
            object.__setattr__(self, name, tuple(sizes))
        if not _positive(self.grid):
            raise InputError(f"grid of the buckets is {self.grid!r}; give an integer above 0 (1 pads no images)")

    def batch_size(self, size: int) -> int:
        """Examples per forward, for a batch of this size."""
        return 1 << (size - 1).bit_length() if self.batch is None else _next(size, self.batch)

    def text_length(self, length: int, most: int) -> int:
        """Words per text, for texts of this length in a model with ``most`` positions."""
        if self.words is None:
            return min(_multiple(length, 8 if length <= 40 else 16), most)
        return min(_next(length, self.words), most)

    def pixels(self, size: int, patch: int) -> int:
        """Height or width in pixels, of images that are this high or wide, in a model with such patches."""
        return _multiple(size, self.grid * patch)


@dataclass(frozen=True)
class Sizes:
    """What a batch is padded to.

    Attributes:
        batch: ``B``.
        words: ``T``.
        height: Of images in pixels, or None to leave them as they are.
        width: The same.
    """

    batch: int
    words: int
    height: int | None = None
    width: int | None = None


def with_masks(inputs: Mapping[str, Tensor], images: bool) -> dict[str, Tensor]:
    """Add the masks that are missing, made of ones.

    Args:
        inputs: As for `padded`, at least ``input_ids`` and ``pixel_values``.
        images: Whether images have a mask.
    """
    words, pixels = inputs["input_ids"], inputs["pixel_values"]
    full = dict(inputs)
    if "attention_mask" not in full:
        full["attention_mask"] = torch.ones_like(words, dtype=torch.int64)
    if images and "pixel_mask" not in full:
        full["pixel_mask"] = torch.ones_like(pixels.select(-3, 0), dtype=torch.int64)
    return {name: full[name] for name in (*TEXT, *IMAGE) if name in full}  # in one order: it is a part of a graph's key


def padded(inputs: Mapping[str, Tensor], sizes: Sizes, pad_id: int) -> dict[str, Tensor]:
    """A batch in larger buffers: masks are 0 in what is added, and the last example is repeated.

    Args:
        inputs: ``input_ids``, ``attention_mask``, ``token_type_ids`` ``(B, T)``; ``pixel_values (B, C, height, width)``
            or ``(B, images, C, height, width)``, ``pixel_mask`` the same without ``C``; some or all of them.
        sizes: At least those of the inputs.
        pad_id: Word id in padding.

    Returns:
        The same names; tensors that need no padding are not copied.
    """
    return {name: _repeated(_extended(name, x.detach(), sizes, pad_id), sizes.batch) for name, x in inputs.items()}


def _extended(name: str, x: Tensor, sizes: Sizes, pad_id: int) -> Tensor:
    if name in TEXT:
        more = [0, sizes.words - x.shape[1]]
    elif sizes.height is not None and sizes.width is not None:
        more = [0, sizes.width - x.shape[-1], 0, sizes.height - x.shape[-2]]
    else:
        return x
    return pad(x, more, value=pad_id if name == "input_ids" else 0) if any(more) else x


def _repeated(x: Tensor, batch: int) -> Tensor:
    more = batch - x.shape[0]
    return torch.cat([x, x[-1:].expand(more, *x.shape[1:])]) if more else x


def cut(output: Any, sizes: Sizes, batch: int, words: int | None) -> Any:
    """What the model returns for the inputs before padding.

    Args:
        output: A model's output: tensors, one row for each example, in dataclasses, tuples or lists.
        sizes: What the inputs were padded to.
        batch: ``B`` before padding.
        words: ``T`` before padding, where each tensor has one row for each word ``(B, T, ...)``; else None.

    Returns:
        The same classes, with other tensors.

    Raises:
        InputError: If a tensor has not one row for each example.
    """

    def own(x: Tensor) -> Tensor:
        if batch < sizes.batch:
            if not x.ndim or x.shape[0] != sizes.batch:
                raise InputError(
                    f"the model returns a tensor {tuple(x.shape)} for a batch of {sizes.batch}, not one row for "
                    "each example; give buckets=pumer.Buckets(batch=())"
                )
            x = x[:batch]
        return x if words is None else x[:, :words]

    return tree_map_only(Tensor, own, output)


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _next(size: int, sizes: tuple[int, ...]) -> int:
    return next((larger for larger in sizes if larger >= size), size)


def _multiple(size: int, unit: int) -> int:
    return -(-size // unit) * unit
