"""Pre-training samples as tensors: images, token ids, and labels of every patch and word."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.pretrain_small.patches import dense_labels, patch_objects
from benchmarks.pretrain_small.sentences import (
    NOUNS,
    OPENERS,
    Caption,
    ask_of_both,
    caption,
    hypothesis_with,
    misdescribe,
)
from pumer.world import scenes, sentences
from pumer.world.descriptions import Description, describe_scene
from pumer.world.entailment import LABELS, Hypothesis
from pumer.world.questions import ask

TEXTS = 2
"""Sentences about each scene."""


@dataclass
class Batch:
    """B samples; P patches in raster order, T text tokens.

    Args:
        images: (B, H, W, 3) uint8.
        ids: (B, T) token ids, padded with 0, masked words replaced by [MASK].
        words: (B, T) the ids before masking where a word is masked, -100 elsewhere.
        dense: (B, P, 6) per-patch labels in the order of DENSE, 0 for background.
        roles: (B, P) 0 none, 1 target of the sentence, 2 what it only refers to.
        answers: (B,) index into the layout's answers, -100 for a caption.
        true: (B,) whether a caption fits its image, -100 for a question.
        kinds: (B,) index into KINDS, -1 for a caption.
        labels: (B,) index into LABELS of an entailment sentence, -100 for all else.
        pairs: (B,) whether a statement is true of this image and the next one, whose sample stands TEXTS further on;
            -100 for all else.
        places: (B, T, 9) of a word that names objects, or says something of some of them: whether one of these is at
            each of POSITIONS; -1 for the other words.
        claims: (B, T) whether what a word is part of is true of the image, in descriptions; -100 for all else.
        phrases: (B, T) which phrase of the sentence a token is in, such as "the striped ring"; -1 for [CLS] and
            padding.
    """

    images: torch.Tensor
    ids: torch.Tensor
    words: torch.Tensor
    dense: torch.Tensor
    roles: torch.Tensor
    answers: torch.Tensor
    true: torch.Tensor
    kinds: torch.Tensor
    labels: torch.Tensor
    pairs: torch.Tensor
    places: torch.Tensor
    claims: torch.Tensor
    phrases: torch.Tensor


_Span = tuple[int, int]


@dataclass
class _Text:
    """One sentence about a scene: its ids and labels as in Batch, the objects it is about and refers to.

    `named` holds parts of the sentence, from and to which character, with the objects that each names; `claimed` with
    whether each is true.
    """

    ids: np.ndarray
    targets: tuple[int, ...]
    anchors: tuple[int, ...] = ()
    words: np.ndarray | None = None
    answer: int = -100
    true: int = -100
    kind: int = -1
    label: int = -100
    pair: int = -100
    text: str = ""
    named: tuple[tuple[_Span, tuple[int, ...]], ...] = ()
    claimed: tuple[tuple[_Span, bool], ...] = ()


@dataclass(frozen=True)
class Source:
    """Where samples come from: every index is one scene with TEXTS sentences about it.

    The last sentence of two neighbouring scenes may be the same, a statement about both.

    Args:
        tokenizer: of the small models.
        seed: of the scenes.
        split: of the scenes.
        layout: of the scenes.
        captions: fraction of them that are captions; the rest are questions.
        tasks: fraction of them, before that, that are the other data sets': entailment sentences, descriptions, and
            statements about two images.
    """

    tokenizer: Tokenizer
    seed: int = 1
    split: str = "pretrain"
    layout: scenes.SceneConfig = scenes.NARROW
    captions: float = 0.2
    tasks: float = 0.4

    @property
    def length(self) -> int:
        """Tokens of every text, padding included: as long as the longest sentence of any data set."""
        return 40 if self.layout.wide else 30

    def batch(self, first: int, count: int) -> Batch:
        """The samples of the scenes `first` to `first + count - 1`; `count` is even."""
        rows = [row for index in range(first, first + count, 2) for row in self._two_scenes(index)]
        columns = [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]
        return Batch(*columns)

    def _two_scenes(self, index: int) -> Iterator[tuple[np.ndarray, ...]]:
        rng = scenes.generator(self.seed, self.split, index)
        left, right = (scenes.make_scene(rng, self.layout, self.split == "heldout") for _ in range(2))
        shared = None
        if rng.integers(1000) < 750 * self.tasks:
            shared = ask_of_both(left, right, rng)
        for number, scene in enumerate((left, right)):
            texts = [self._text(scene, rng) for _ in range(TEXTS if shared is None else TEXTS - 1)]
            if shared is not None:
                pair = int(shared[0].true_of(left, right)) if number == 0 else -100
                texts.append(self._asked(shared[1:][number], pair=pair))
            yield from self._rows(scene, texts)

    def _rows(self, scene: scenes.Scene, texts: list[_Text]) -> Iterator[tuple[np.ndarray, ...]]:
        image, owner = scenes.render(scene), patch_objects(scene).reshape(-1).astype(np.int64)
        dense = dense_labels(scene, owner)
        for text in texts:
            roles = np.isin(owner, text.targets) + 2 * np.isin(owner, text.anchors)
            words = np.full(self.length, -100) if text.words is None else text.words
            numbers = (np.array(number) for number in (text.answer, text.true, text.kind, text.label, text.pair))
            yield image, text.ids, words, dense, roles, *numbers, *self._spans(scene, text), self._phrases(text.ids)

    def _spans(self, scene: scenes.Scene, text: _Text) -> tuple[np.ndarray, np.ndarray]:
        """The labels `places` and `claims` of a sentence's words."""
        places, claims = np.full((self.length, len(sentences.POSITIONS)), -1), np.full(self.length, -100)
        if text.named or text.claimed:
            offsets = self.tokenizer.encode(text.text).offsets
            for span, objects in text.named:
                at = [sentences.POSITIONS.index(sentences.position(scene, scene.objects[index])) for index in objects]
                places[_tokens(offsets, span)] = np.isin(np.arange(len(sentences.POSITIONS)), at)
            for span, true in text.claimed:
                claims[_tokens(offsets, span)] = true
        return places, claims

    def _phrases(self, ids: np.ndarray) -> np.ndarray:
        """The label `phrases` of a sentence's tokens."""
        ends, starts = (
            np.isin(ids, [found for word in words if (found := self.tokenizer.token_to_id(word)) is not None])
            for words in (NOUNS, OPENERS.split())
        )
        starts[1:] |= ends[:-1]
        return np.where((ids == 0) | (np.arange(len(ids)) == 0), -1, starts.cumsum())

    def _text(self, scene: scenes.Scene, rng: np.random.Generator) -> _Text:
        if rng.integers(1000) < 1000 * self.tasks:
            return self._task(scene, rng)
        if rng.integers(1000) < 1000 * self.captions:
            return self._captioned(caption(scene, rng), rng)
        return self._asked(ask(scene, rng))

    def _asked(self, question: sentences.Question, pair: int = -100) -> _Text:
        name = question.question_type.partition("/")[0]
        kind = sentences.KINDS.index(name) if name in sentences.KINDS else -1
        answer, ids = sentences.answers(self.layout).index(question.answer), self._ids(question.text)
        return _Text(ids, question.targets, question.anchors, answer=answer, kind=kind, pair=pair)

    def _task(self, scene: scenes.Scene, rng: np.random.Generator) -> _Text:
        """A sentence of another data set about one image."""
        if rng.integers(2):
            label = LABELS[int(rng.integers(len(LABELS)))]
            found = hypothesis_with(label, scene, rng)
            if found is not None:
                return self._hypothesis(found, label, scene)
        return self._described(self._description(scene, rng), scene, rng)

    def _hypothesis(self, found: Hypothesis, label: str, scene: scenes.Scene) -> _Text:
        """Its first words name a group of objects, the last ones say something of some of them."""
        group, claim = sentences.matching(scene, found.group), max(found.text.rfind(word) for word in (" is ", " are "))
        named = (((0, claim), group), ((claim, len(found.text)), found.fitting(scene)))
        return _Text(self._ids(found.text), group, label=LABELS.index(label), text=found.text, named=named)

    def _described(self, found: Description, scene: scenes.Scene, rng: np.random.Generator) -> _Text:
        """Words masked in a quarter; the others are labelled with what they name and whether it is true."""
        true = found.true_of(scene)
        targets = found.targets if true else ()
        if rng.integers(4) == 0:
            return self._captioned(Caption(found.text, true, targets), rng)
        named, claimed, end = [], [], 0
        for attributes in found.named:
            phrase = sentences.phrase(attributes)
            start = found.text.index(phrase, end)
            end = start + len(phrase)
            named.append(((start, end), sentences.matching(scene, attributes)))
        end = 0
        for part, claim in zip(found.parts, found.claims, strict=True):
            claimed.append(((end, end + len(part)), claim.true_of(scene)))
            end += len(part)
        text, ids = found.text, self._ids(found.text)
        return _Text(ids, targets, true=int(true), text=text, named=tuple(named), claimed=tuple(claimed))

    def _description(self, scene: scenes.Scene, rng: np.random.Generator) -> Description:
        """A description: of the scene half of the time, else of another, or of this one with two objects swapped."""
        choice = rng.integers(4)
        if choice < 2:
            return describe_scene(scene, rng, 1)[0]
        if choice == 2:
            return misdescribe(scene, rng)
        return describe_scene(scenes.make_scene(rng, self.layout), rng, 1)[0]

    def _ids(self, text: str) -> np.ndarray:
        ids = self.tokenizer.encode(text).ids
        return np.array(ids + [0] * (self.length - len(ids)))

    def _captioned(self, made: Caption, rng: np.random.Generator) -> _Text:
        """Words masked in every other caption; the masked words are labels only if the caption is true."""
        ids = self._ids(made.text)
        chosen = (rng.integers(4, size=len(ids)) == 0) & (ids > 4) & bool(rng.integers(2))
        masked = np.where(chosen, cast(int, self.tokenizer.token_to_id("[MASK]")), ids)
        words = np.where(chosen & made.true, ids, -100)
        return _Text(masked, made.targets, made.anchors, words, true=int(made.true))


def _tokens(offsets: list[_Span], span: _Span) -> list[int]:
    """The tokens that lie within a part of a sentence."""
    return [index for index, (start, end) in enumerate(offsets) if span[0] <= start < end <= span[1]]
