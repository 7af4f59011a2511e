"""What tests need of every backbone: how to build a tiny model, an example for it and a padded batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

from pumer.reducers import ReductionConfig
from tiny.examples import moved

GRIDS = ((10, 6, 6), (6, 4, 6), (3, 6, 3))
"""Words, patch rows and patch columns of the usual batch."""

PATCH = 8
"""Pixels along a patch."""

WORDS = 100
"""Size of the vocabulary."""


@dataclass(frozen=True)
class Sample:
    """One example: word ids ``(T,)`` and images ``(C, height, width)``."""

    words: Tensor
    images: tuple[Tensor, ...]


@dataclass(frozen=True)
class Tiny:
    """How tests make models and inputs of one backbone.

    Attributes:
        heads: Names of transformers classes; the first is the one tests use when one is enough.
        two_images: Those of them that see two images.
        per_word: Those of them with one output row per word.
        patch: Pixels along a patch.
        build: From head, layers (of each stack, at most) and config settings to a model in eval mode, float32.
        sample: From seed, words, patch rows and columns to an example; the last argument is the number of images.
        collate: Examples as a padded batch; text length, patch rows and columns may be larger than needed. What stands
            in padding is noise.
        root: The module below a head that is patched.
        states: From a root's output to the states of both modalities, text first, before and after each layer.
        stride: How many numbers a layer counts for: METER's pairs are two layers each.
        vision: Whether there is a vision encoder to reduce in.
        silence: Make every layer pass its input through, but for the reduction.
    """

    heads: tuple[str, ...]
    two_images: frozenset[str]
    per_word: frozenset[str]
    patch: int
    build: Callable[..., nn.Module]
    sample: Callable[..., Sample]
    collate: Callable[..., dict[str, Tensor]]
    root: Callable[[nn.Module], nn.Module]
    silence: Callable[[nn.Module], None]
    states: Callable[[ModelOutput], Sequence[Tensor]]
    stride: int = 1
    vision: bool = False

    def fit(self, config: ReductionConfig) -> ReductionConfig:
        """The config with its layers as this backbone counts them, without the vision steps if it has no such layers.

        Args:
            config: Reduces in layers 0 to 2 at most.
        """
        return moved(config, lambda stack, layer: layer if stack == "vision" else layer * self.stride, self.vision)

    def takes(self, config: ReductionConfig) -> bool:
        """Whether the backbone has all stacks of layers that the config names."""
        return self.vision or all(stack == "fusion" for stack, _ in config.places())

    def batch(
        self, grids: Sequence[tuple[int, int, int]], head: str | None = None, seed: int = 0, **padding: int
    ) -> dict[str, Tensor]:
        """A random batch; ``grids`` has words, patch rows and patch columns of each example."""
        images = 2 if head in self.two_images else 1
        samples = [self.sample(seed + i, *grid, images=images) for i, grid in enumerate(grids)]
        return self.collate(samples, **padding)


def fill_zeros(model: nn.Module) -> nn.Module:
    """Give parameters that start at zero (biases, [CLS], positions) values that matter; the model in eval mode."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.2)
    return model.eval()


def random_sample(seed: int, words: int, rows: int, columns: int, images: int = 1) -> Sample:
    """One example with words ``(words,)`` and images of ``rows`` x ``columns`` patches."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, WORDS, (words,), generator=random)
    size = (3, rows * PATCH, columns * PATCH)
    return Sample(ids, tuple(torch.randn(size, generator=random) for _ in range(images)))


def padded_batch(samples: Sequence[Sample], text: int = 0, rows: int = 0, columns: int = 0) -> dict[str, Tensor]:
    """Examples of any sizes in one batch, with noise in the padding."""
    random = torch.Generator().manual_seed(99)
    T = max(text, *(len(sample.words) for sample in samples))
    height = max(rows * PATCH, *(image.shape[1] for sample in samples for image in sample.images))
    width = max(columns * PATCH, *(image.shape[2] for sample in samples for image in sample.images))
    B, images = len(samples), len(samples[0].images)
    ids = torch.randint(5, WORDS, (B, T), generator=random)
    mask = torch.zeros(B, T, dtype=torch.int64)
    pixels = torch.randn(B, images, 3, height, width, generator=random)
    pixel_mask = torch.zeros(B, images, height, width, dtype=torch.int64)
    for i, sample in enumerate(samples):
        ids[i, : len(sample.words)] = sample.words
        mask[i, : len(sample.words)] = 1
        for j, image in enumerate(sample.images):
            pixels[i, j, :, : image.shape[1], : image.shape[2]] = image
            pixel_mask[i, j, : image.shape[1], : image.shape[2]] = 1
    if images == 1:
        pixels, pixel_mask = pixels[:, 0], pixel_mask[:, 0]
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "pixel_mask": pixel_mask}
