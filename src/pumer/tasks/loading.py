"""From examples to batches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from pumer.data.augmentation import rand_augment
from pumer.data.pixels import Pixels
from pumer.settings.common import AugmentConfig, Blank, Resize
from pumer.tasks.base import Example, Inputs, Task
from pumer.utils.errors import InputError


def text_length_of(config: Any, text_length: int | None) -> int:
    """The text length to use: as given, or as many tokens as a model has positions; refuses what it cannot take."""
    positions: int = config.max_position_embeddings
    if text_length is None:
        return positions
    if not 2 <= text_length <= positions:
        raise InputError(f"text_length must lie in [2, {positions}] for this model, not {text_length}")
    return text_length


def make_inputs(
    processor: Any, text_length: int, resize: Resize = "square", blank: Blank = "none", fixed_length: bool = False
) -> Inputs:
    """How a job turns examples into tensors; `blank` "image" makes every image grey, "text" every question empty."""
    pixels = Pixels(processor.image_processor, resize, blank=blank == "image")
    return Inputs(processor.tokenizer, pixels, text_length, blank == "text", fixed_length)


@dataclass(frozen=True, slots=True)
class Item:
    """An example with its position, and the epoch of the training; None outside of one."""

    index: int
    example: Example
    epoch: int | None = None


class Examples(Dataset[Item]):
    """Examples with their position, for a `DataLoader`; `task` draws what it adds to them, by `seed` and `epoch`.

    `training`: whether a model learns from them, so that their images may be augmented.
    """

    def __init__(
        self, examples: Sequence[Example], task: Task | None = None, seed: int = 0, training: bool = True
    ) -> None:
        self.examples, self.task, self.seed, self.training, self.epoch = examples, task, seed, training, 0

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Item:
        if self.task is None:
            return Item(index, self.examples[index])
        drawn = self.task.draw(self.examples, index, self.seed, self.epoch)
        return Item(index, drawn, self.epoch if self.training else None)


class Collator:
    """Makes a task's batches, with `index` (B,): the positions of the examples.

    `augment` changes images of training examples, as a function of `seed`, epoch and position alone.
    """

    def __init__(self, task: Task, inputs: Inputs, augment: AugmentConfig | None = None, seed: int = 0) -> None:
        self.task, self.inputs, self.augment, self.seed = task, inputs, augment, seed

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """One batch of B examples."""
        augmented = self.augment is not None and items[0].epoch is not None
        inputs = replace(self.inputs, edit=partial(self._edit, items)) if augmented else self.inputs
        batch = self.task.collate([item.example for item in items], inputs)
        return {**batch, "index": torch.tensor([item.index for item in items])}

    def _edit(self, items: Sequence[Item], position: int, image: np.ndarray) -> np.ndarray:
        """The augmented image at a position of the batch, which has the images of the first example first."""
        row, number = divmod(position, len(items[0].example.images))
        key = (self.seed, items[row].epoch or 0, items[row].index, number)
        return rand_augment(image, self.augment or AugmentConfig(), key)
