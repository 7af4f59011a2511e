"""Training samples of the small LLaVA as tensors: conversations of several questions about one image."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from benchmarks.pretrain_small.patches import DENSE, dense_labels, patch_objects
from benchmarks.pretrain_small.small import PATCH_SIZE
from benchmarks.pretrain_small.small_llava import ANSWER, END, INSTRUCTION, PATCHES
from pumer.world import scenes, sentences
from pumer.world.questions import ask

TURNS = 4
"""Questions about each image."""
FACTS = tuple(DENSE.values())[:5]
"""Values of shape, colour, size, texture and position."""


@dataclass
class Batch:
    """B conversations of T tokens about P patches.

    Attributes:
        images: (B, H, W, 3) uint8.
        ids: (B, T) what follows the image, padded with 0.
        labels: (B, T) the token that follows each, where it is part of an answer; -100 elsewhere.
        turns: (B, T) the turn whose question, or `<answer>`, a token is of; -1 for the rest.
        about: (B, TURNS, P) whether a patch shows what the turn's question is about, or refers to.
        dense: (B, P, 6) what every patch shows, see `dense_labels`.
        facts: (B, TURNS, 2, 5) shape, colour, size, texture and position of the object that a question is about, and of
            that which it refers to; -100 where there is none, or more than one.
    """

    images: Tensor
    ids: Tensor
    labels: Tensor
    turns: Tensor
    about: Tensor
    dense: Tensor
    facts: Tensor


@dataclass(frozen=True)
class Conversations:
    """Where batches come from: each index is one scene and `TURNS` questions about it."""

    words: PreTrainedTokenizerFast
    seed: int
    split: str = "pretrain"

    def batch(self, first: int, count: int) -> Batch:
        """The conversations `first` to `first + count - 1`."""
        images, rows = [], []
        about = np.zeros((count, TURNS, PATCHES), bool)
        dense, facts = np.zeros((count, PATCHES, len(DENSE)), np.int64), np.full((count, TURNS, 2, len(FACTS)), -100)
        for place, index in enumerate(range(first, first + count)):
            rng = scenes.generator(self.seed, self.split, index)
            scene = scenes.make_scene(rng, held_out=self.split == "heldout")
            images.append(scenes.render(scene))
            asked = [ask(scene, rng) for _ in range(TURNS)]
            rows.append(list(self._tokens(asked, instructed=rng.integers(4) == 0)))
            owner = patch_objects(scene, PATCH_SIZE).reshape(-1).astype(np.int64)
            dense[place] = dense_labels(scene, owner)
            for turn, question in enumerate(asked):
                about[place, turn] = np.isin(owner, (*question.targets, *question.anchors))
                for part, objects in enumerate((question.targets, question.anchors)):
                    if len(objects) == 1:
                        item = scene.objects[objects[0]]
                        where = sentences.POSITIONS.index(sentences.position(scene, item))
                        facts[place, turn, part] = (item.shape, item.colour, item.size, item.texture, where)
        length = max(map(len, rows))
        columns = np.array([row + [(0, -100, -1)] * (length - len(row)) for row in rows])
        ids, labels, turns = torch.from_numpy(columns).unbind(2)
        others = map(torch.from_numpy, (about, dense, facts))
        return Batch(torch.from_numpy(np.stack(images)), ids, labels, turns, *others)

    def _tokens(self, asked: list[sentences.Question], instructed: bool) -> Iterator[tuple[int, int, int]]:
        """Id, label and turn of every token."""
        answer, end = (self.words.convert_tokens_to_ids(each) for each in (ANSWER, END))
        for turn, question in enumerate(asked):
            text = f"{question.text}\n{INSTRUCTION}" if instructed else question.text
            said = [*self._ids(question.answer), end]
            yield from ((token, -100, turn) for token in self._ids(text))
            yield answer, said[0], turn
            yield from ((token, label, -1) for token, label in zip(said, [*said[1:], -100], strict=True))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.words(text, add_special_tokens=False).input_ids
        return ids


def shown(batch: Batch, count: int) -> Tensor:
    """(B, count) patches to show: those that any question is about first, then others at random."""
    rank = torch.rand(batch.about.shape[0], PATCHES) + batch.about.any(1)
    return rank.topk(count, 1).indices.sort(1).values
