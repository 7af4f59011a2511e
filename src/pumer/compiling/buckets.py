"""Few shapes for many inputs: batch, words and images padded to bucket sizes, and outputs cut back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._pytree import tree_map_only

from pumer.utils.config import config
from pumer.utils.errors import InputError

TEXT = ("input_ids", "attention_mask", "token_type_ids")
IMAGE = ("pixel_values", "pixel_mask")


def _ascending(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if list(sizes) != sorted(set(sizes)):
        raise ValueError(f"{list(sizes)} is not in ascending order; give sizes such as [1, 8]")
    return sizes


BucketSizes = Annotated[tuple[Annotated[int, Field(ge=1)], ...], AfterValidator(_ascending)]


@config
class Buckets:
    """The sizes that inputs are padded to; each combination that occurs is one graph.

    A size above the largest bucket stays as it is, and has a graph of its own; so an empty tuple pads nothing.

    Attributes:
        batch: Examples per forward, ascending; None: powers of two.
        words: Words, special tokens counted, ascending; None: multiples of 8 up to 40, of 16 above. Never more than the
            model has positions for.
        grid: Patch rows and columns of images that have a ``pixel_mask`` are rounded up to multiples of this.

    Example:
        >>> Buckets(batch=(1, 8, 64)).batch_size(5)
        8
    """

    batch: BucketSizes | None = None
    words: BucketSizes | None = None
    grid: Annotated[int, Field(ge=1)] = 2

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
    """What a batch is padded to: examples, words, and pixels of images, which are None to leave them as they are."""

    batch: int
    words: int
    height: int | None = None
    width: int | None = None


def with_masks(inputs: Mapping[str, Tensor], images: bool) -> dict[str, Tensor]:
    """Add the masks that are missing, made of ones; where ``images``, also that of the images."""
    words, pixels = inputs["input_ids"], inputs["pixel_values"]
    full = dict(inputs)
    if "attention_mask" not in full:
        full["attention_mask"] = torch.ones_like(words, dtype=torch.int64)
    if images and "pixel_mask" not in full:
        full["pixel_mask"] = torch.ones_like(pixels.select(-3, 0), dtype=torch.int64)
    return {name: full[name] for name in (*TEXT, *IMAGE) if name in full}  # in one order: it is a part of a graph's key


def padded(inputs: Mapping[str, Tensor], sizes: Sizes, pad_id: int) -> dict[str, Tensor]:
    """A batch in larger buffers: masks are 0 in what is added, and the last example is repeated.

    Tensors that need no padding are not copied; ``pad_id`` is the word id in padding.
    """
    larger = {}
    for name, x in inputs.items():
        x, more, examples = x.detach(), [0], sizes.batch - x.shape[0]
        if name in TEXT:
            more = [0, sizes.words - x.shape[1]]
        elif sizes.height is not None and sizes.width is not None:
            more = [0, sizes.width - x.shape[-1], 0, sizes.height - x.shape[-2]]
        if any(more):
            x = pad(x, more, value=pad_id if name == "input_ids" else 0)
        larger[name] = torch.cat([x, x[-1:].expand(examples, *x.shape[1:])]) if examples else x
    return larger


def cut(output: Any, sizes: Sizes, batch: int, words: int | None) -> Any:
    """A model's output, of whatever classes, for the ``batch`` before padding to ``sizes``.

    Tensors have one row for each example; where they have one for each word ``(B, T, ...)``, cut to so many ``words``.
    """

    def own(x: Tensor) -> Tensor:
        if batch < sizes.batch:
            if not x.ndim or x.shape[0] != sizes.batch:
                returned = f"a tensor {tuple(x.shape)} for a batch of {sizes.batch}, not one row for each example"
                raise InputError(f"the model returns {returned}; give buckets=pumer.Buckets(batch=())")
            x = x[:batch]
        return x if words is None else x[:, :words]

    return tree_map_only(Tensor, own, output)


def _next(size: int, sizes: tuple[int, ...]) -> int:
    return next((larger for larger in sizes if larger >= size), size)


def _multiple(size: int, unit: int) -> int:
    return -(-size // unit) * unit
