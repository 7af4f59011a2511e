"""Pre-training samples as tensors: pictures, token ids, and what every patch shows and has to do with the text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import IterableDataset

from pumer.world import scenes, sentences

TEXT_LENGTH = 20
DENSE = {"shape": len(scenes.SHAPES), "colour": len(scenes.COLOURS), "size": len(scenes.SIZES)}
DENSE |= {"texture": len(scenes.TEXTURES), "position": len(sentences.POSITIONS), "centre": 1}
"""Values of every per-patch label; each has one more, 0, for "none"."""


@dataclass
class Batch:
    """B samples; P patches in raster order, T text tokens.

    Args:
        images: (B, H, W, 3) uint8.
        ids: (B, T) token ids, padded with 0, masked words replaced by [MASK].
        words: (B, T) the ids before masking where a word is masked, -100 elsewhere.
        dense: (B, P, 6) per-patch labels in the order of DENSE, 0 for background.
        roles: (B, P) 0 none, 1 target of the sentence, 2 what it only refers to.
        answers: (B,) index into ANSWERS, -100 for a caption.
        true: (B,) whether a caption fits its picture, -100 for a question.
        kinds: (B,) index into KINDS, -1 for a caption.
    """

    images: torch.Tensor
    ids: torch.Tensor
    words: torch.Tensor
    dense: torch.Tensor
    roles: torch.Tensor
    answers: torch.Tensor
    true: torch.Tensor
    kinds: torch.Tensor


@dataclass(frozen=True)
class Source:
    """Where samples come from: every index is one scene with `texts` sentences about it."""

    tokenizer: Tokenizer
    seed: int = 1
    split: str = "pretrain"
    texts: int = 2
    captions: float = 0.2

    def batch(self, first: int, count: int) -> Batch:
        """The samples of the scenes `first` to `first + count - 1`."""
        rows = [row for index in range(first, first + count) for row in self._scene(index)]
        columns = [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]
        return Batch(*columns)

    def _scene(self, index: int) -> Iterator[tuple[np.ndarray, ...]]:
        rng = scenes.generator(self.seed, self.split, index)
        held_out = self.split == "heldout"
        scene = scenes.make_scene(rng, held_out=held_out)
        image, owner = scenes.render(scene), scenes.patch_objects(scene).reshape(-1).astype(np.int64)
        dense = dense_labels(scene, owner)
        for _ in range(self.texts):
            if rng.integers(1000) < 1000 * self.captions:
                caption = sentences.caption(scene, rng)
                ids, words = self._caption(caption, rng)
                answer, true, kind = -100, int(caption.true), -1
                targets, anchors = caption.targets, caption.anchors
            else:
                question = sentences.ask(scene, rng)
                ids, words = self._ids(question.text), np.full(TEXT_LENGTH, -100)
                answer, true = sentences.ANSWERS.index(question.answer), -100
                kind = sentences.KINDS.index(question.kind)
                targets, anchors = question.targets, question.anchors
            roles = np.isin(owner, targets) + 2 * np.isin(owner, anchors)
            yield image, ids, words, dense, roles, np.array(answer), np.array(true), np.array(kind)

    def _ids(self, text: str) -> np.ndarray:
        ids = self.tokenizer.encode(text).ids
        return np.array(ids + [0] * (TEXT_LENGTH - len(ids)))

    def _caption(self, caption: sentences.Caption, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Token ids, words masked in every other caption; what they were is asked only if the caption is true."""
        ids = self._ids(caption.text)
        chosen = (rng.integers(4, size=TEXT_LENGTH) == 0) & (ids > 4) & bool(rng.integers(2))
        masked = np.where(chosen, cast(int, self.tokenizer.token_to_id("[MASK]")), ids)
        return masked, np.where(chosen & caption.true, ids, -100)


def dense_labels(scene: scenes.Scene, owner: np.ndarray) -> np.ndarray:
    """What every patch shows.

    Args:
        scene: the scene.
        owner: (P,) the object of each patch or -1, see :func:`pumer.world.scenes.patch_objects`.

    Returns:
        (P, 6) labels in the order of DENSE; 0 is background.
    """
    table = [
        (o.shape, o.colour, o.size, o.texture, sentences.POSITIONS.index(sentences.position(scene, o)), -1)
        for o in scene.objects
    ]
    labels = np.vstack([np.array(table) + 1, np.zeros((1, len(DENSE)), np.int64)])[owner]
    for item in scene.objects:
        x, y = (centre // 16 for centre in item.centre)
        labels[y * 12 + x, -1] = 1
    return labels


class Stream(IterableDataset):
    """Batches without end, from batch `start` on: made in a worker process while the model trains."""

    def __init__(self, source: Source, batch_size: int, start: int = 0) -> None:
        """Batches of `batch_size` samples; the i-th is the same whenever it is made."""
        self.source, self.scenes, self.start = source, batch_size // source.texts, start

    def __iter__(self) -> Iterator[Batch]:
        """Batches in order."""
        torch.set_num_threads(1)
        index = self.start
        while True:
            yield self.source.batch(index * self.scenes, self.scenes)
            index += 1
