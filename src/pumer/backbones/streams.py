"""What the adapters share: patches by one product, text in a compact block and back to its positions."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pumer import kernels
from pumer.functional import gather_tokens, ordered
from pumer.reducers.tables import ranks
from pumer.tokens import Tokens


class PatchProjection(nn.Conv2d):
    """The convolution over patches that do not overlap, as one matrix product; a third faster on a CPU."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: D102
        if self.stride != self.kernel_size:
            return super().forward(input)
        height, width = self.kernel_size
        rows, columns = input.shape[2] // height, input.shape[3] // width
        patches = input[:, :, : rows * height, : columns * width].unflatten(3, (columns, width))
        patches = patches.unflatten(2, (rows, height)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        return linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def autocast_off(device: torch.device) -> AbstractContextManager[object]:
    """Keeps similarities and averages in the precision of what they are made from."""
    if device.type == "meta":  # which has no autocast: `pumer.plan` runs there
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def in_graph(x: Tensor) -> bool:
    """Whether a graph is being made of what is computed, so that no value of ``x`` can be looked at."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def text_block(
    states: Tensor, mask: Tensor, reduced: bool, image_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Text as a block of a stream.

    Args:
        states: ``(B, T, D)``.
        mask: ``(B, T)`` bool.
        reduced: Whether anything is going to be reduced: real words then come first.
        image_mask: ``(B, V)`` bool, of the image that follows, or None.

    Returns:
        States, mask, and how many words and image tokens are real, ``(B, 2)`` int64 (no image tokens without a mask),
        or None if nobody has counted them.
    """
    if not reduced:
        return states, mask, None
    if kernels.usable(states):
        states, lengths = kernels.compact(states, mask, image_mask)
        return states, ranks(mask.shape[1], mask.device) < lengths[:, :1], lengths
    words = mask.sum(dim=1, keepdim=True)
    patches = torch.zeros_like(words) if image_mask is None else image_mask.sum(dim=1, keepdim=True)
    states = gather_tokens(states, ordered(~mask))
    return states, ranks(mask.shape[1], mask.device) < words, torch.cat([words, patches], dim=1)


def slots_at_start(text_mask: Tensor, image_mask: Tensor, reduced: bool) -> Tensor:
    """Where the input tokens stand before anything is reduced.

    Args:
        text_mask: ``(B, T)`` bool, as the words were given.
        image_mask: ``(B, V)`` bool, compact.
        reduced: As for `text_block`.

    Returns:
        ``(B, T + V)`` int64, -1 for padding.
    """
    T, V = text_mask.shape[1], image_mask.shape[1]
    slot = ranks(T + V, text_mask.device)
    words = text_mask.cumsum(dim=1) - 1 if reduced else slot[:T]
    return torch.cat([torch.where(text_mask, words, -1), torch.where(image_mask, slot[T:], -1)], dim=1)


def layer_bytes(tokens: int, width: int, inner: int, dtype: torch.dtype) -> int:
    """Bytes of activations of one example in a layer, at its peak: the feed-forward part and the states around it.

    Args:
        tokens: ``N``.
        width: ``D``.
        inner: Width between the two halves of the feed-forward part.
        dtype: Of the states.
    """
    return tokens * (2 * inner + 4 * width) * dtype.itemsize


def attention_dtype(states: Tensor) -> torch.dtype:
    """The dtype in which the layers' attention runs: that of autocast, if it is on."""
    kind = states.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return states.dtype


def expand_text(states: Tensor, tokens: Tokens, text_length: int) -> Tensor:
    """Put the text back to its original positions, so that heads that slice it keep working.

    Args:
        states: ``(B, N, D)`` of the reduced stream; it may hold no image.
        tokens: The reduced stream.
        text_length: ``T``, the text positions of the input.

    Returns:
        ``(B, T + V, D)``: each word has the state of the token that holds it (padding: zero), then the image buffer.
    """
    return torch.cat([tokens.expand(states, text_length), states[:, tokens.text_length :]], dim=1)
