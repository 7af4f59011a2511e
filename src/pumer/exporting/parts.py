"""What becomes programs when a model is exported: the whole of it, or its encoders and what fuses their outputs."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pumer.backbones.meter import image_bias
from pumer.models.meter import MeterEncoding
from pumer.tokens import Decision

_IMAGE = ("image_states", "image_size", "image_bias")
"""Outputs of an image encoder; the last two where tokens were reduced inside of it."""


class Part(NamedTuple):
    """A module that is to become a program.

    Attributes:
        name: of the program's file.
        module: takes the tensors of ``inputs`` one after the other, returns a tensor or several.
        inputs: a batch of at least two examples, by name.
        outputs: names of what it returns.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


def parts_of(
    model: Any, make: Callable[[int], dict[str, Tensor]], lengths: Sequence[int], apart: bool
) -> Iterator[Part]:
    """The parts of a model in the order in which they run, for each word count.

    Args:
        model: With a head, patched, in eval mode and on the CPU.
        make: From a word count to inputs of the model.
        lengths: The word counts.
        apart: Whether the encoders are parts of their own; the image encoder is one for all word counts.
    """
    image: dict[str, Tensor] = {}
    for length in lengths:
        inputs, suffix = make(length), f"-{length}" if len(lengths) > 1 else ""
        if not apart:
            yield Part(f"program{suffix}", _Whole(model, tuple(inputs)), inputs, ("logits",))
            continue
        pixels, encoder = {"pixel_values": inputs.pop("pixel_values")}, _ImageEncoder(model)
        with torch.no_grad():
            text = {"text_states": _TextEncoder(model)(*inputs.values()), "attention_mask": inputs["attention_mask"]}
            if not image:
                image = dict(zip(_IMAGE, encoder(*pixels.values()), strict=False))
                yield Part("image", encoder, pixels, tuple(image))
        yield Part(f"text{suffix}", _TextEncoder(model), inputs, ("text_states",))
        yield Part(f"fusion{suffix}", _Fusion(model), text | image, ("logits",))


class _Whole(nn.Module):
    """A model whose inputs have an order and whose output is its logits."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
        return logits


class _Inner(nn.Module):
    """A part of METER."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


class _TextEncoder(_Inner):
    """Words and their mask to states ``(B, T, D)``."""

    def forward(self, *inputs: Tensor) -> Tensor:
        states: Tensor = self.model.encode_text(*inputs).states
        return states


class _ImageEncoder(_Inner):
    """Images ``(B, C, height, width)`` to states ``(B, K, D)`` and, where the encoder reduces, their sizes and bias.

    Of pairs of images each of these has the images in its second dimension.
    """

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        (pixel_values,) = inputs
        encoded = self.model.encode_image(pixel_values.flatten(0, -4))
        outputs: tuple[Tensor, ...] = (encoded.states,)
        if encoded.size is not None:
            outputs = (encoded.states, encoded.size, image_bias(encoded, encoded.states.dtype).flatten(1))
        return tuple(x.reshape(*pixel_values.shape[:-3], *x.shape[1:]) for x in outputs)


class _Fusion(_Inner):
    """What the encoders made, to logits."""

    def forward(self, *inputs: Tensor) -> Tensor:
        text_states, attention_mask, *image = inputs
        text = MeterEncoding(text_states, attention_mask > 0)
        several = image[0].ndim == 4
        images = zip(*(x.unbind(dim=1) for x in image), strict=True) if several else [image]
        encoded = [_encoded(*each) for each in images]
        logits: Tensor = self.model(encoded_text=text, encoded_image=encoded if several else encoded[0]).logits
        return logits


def _encoded(states: Tensor, size: Tensor | None = None, bias: Tensor | None = None) -> MeterEncoding:
    """An image as its encoder left it; what happened inside is forgotten, but for how large its tokens are."""
    if size is None or bias is None:
        return MeterEncoding(states, torch.ones(states.shape[:2], dtype=torch.bool))
    mask = size > 0
    lengths = torch.stack([torch.zeros_like(mask[:, 0], dtype=torch.int64), mask.sum(dim=1)], dim=1)
    kept = Decision(None, lengths, (0, states.shape[1]), bias=bias[:, None, None])
    return MeterEncoding(states, mask, size, ((("vision", 0), kept),))
