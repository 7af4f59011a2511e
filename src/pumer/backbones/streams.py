"""What the adapters share: patches by one product, text in a compact block and back to its positions."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pumer import kernels
from pumer.functional import gather_tokens, ordered
from pumer.reducers.tables import ranks
from pumer.tokens import Tokens, attention_bias


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
    """Keeps similarities and averages in the precision of their inputs."""
    if device.type == "meta":  # which has no autocast: `pumer.plan` runs there
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def in_graph(x: Tensor) -> bool:
    """Whether a graph is being made, so that no value of ``x`` can be read."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def one_stream(text: Tensor, text_mask: Tensor | None, image: Tensor, image_mask: Tensor, reduced: bool) -> Tokens:
    """Text and image as one stream, as it enters the first cross-modal layer.

    Args:
        text: ``(B, T, D)``.
        text_mask: ``(B, T)``, above 0 for words; None: all of them.
        image: ``(B, 1 + V, D)``, [CLS] and the patches, real ones first.
        image_mask: ``(B, 1 + V)`` bool.
        reduced: As for `text_block`.
    """
    given = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device) if text_mask is None else text_mask > 0
    text, compact_mask, counts = text_block(text, given, reduced, image_mask)
    mask, states = torch.cat([compact_mask, image_mask], dim=1), torch.cat([text, image.to(text.dtype)], dim=1)
    biases = (attention_bias(mask, attention_dtype(states)),)
    origin = partial(slots_at_start, given, image_mask, reduced)
    return Tokens((states,), mask.to(torch.float32), biases, text.shape[1], origin, counts=counts)


def text_block(
    states: Tensor, mask: Tensor, reduced: bool, image_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Text ``(B, T, D)`` as a block of a stream, with its mask ``(B, T)`` bool.

    Args:
        states: The text.
        mask: Which words are real.
        reduced: Whether anything is going to be reduced: real words then come first.
        image_mask: ``(B, V)`` bool, of the image that follows, or None.

    Returns:
        States, mask, and how many words and image tokens are real, ``(B, 2)`` int64 (no image tokens without a mask);
        None for the latter if nothing is reduced.
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
    """``(B, T + V)`` int64, slots of the input tokens before anything is reduced, -1 for padding; see `one_stream`."""
    T, V = text_mask.shape[1], image_mask.shape[1]
    slot = ranks(T + V, text_mask.device)
    words = text_mask.cumsum(dim=1) - 1 if reduced else slot[:T]
    return torch.cat([torch.where(text_mask, words, -1), torch.where(image_mask, slot[T:], -1)], dim=1)


def grid_cells(rows: int, columns: int, image: Tensor) -> Tensor:
    """``(B, 1 + V, 2)``, row and column of each patch of an unpadded image ``(B, 1 + V, D)``, -1 for [CLS]."""
    cell = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    cell = torch.cat([cell.new_full((1, 2), -1), cell])
    return cell.to(image.device).expand(len(image), -1, -1)


def layer_bytes(tokens: int, width: int, inner: int, dtype: torch.dtype) -> int:
    """Bytes of one example's activations at the peak of a layer, whose feed-forward part is ``inner`` wide."""
    return tokens * (2 * inner + 4 * width) * dtype.itemsize


def attention_dtype(states: Tensor) -> torch.dtype:
    """The dtype in which the layers' attention runs: that of autocast, if it is on."""
    kind = states.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return states.dtype


def expand_text(states: Tensor, tokens: Tokens, text_length: int) -> Tensor:
    """Put the text back to its ``T`` original positions, so that heads that slice it keep working.

    Args:
        states: ``(B, N, D)`` of the reduced stream; it may hold no image.
        tokens: The reduced stream.
        text_length: ``T``.

    Returns:
        ``(B, T + V, D)``: each word has the state of the token that holds it (padding: zero), then the image buffer.
    """
    return torch.cat([tokens.expand(states, text_length), states[:, tokens.text_length :]], dim=1)
