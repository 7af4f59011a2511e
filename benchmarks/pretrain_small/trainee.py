"""A small model while it pre-trains: the model plus heads that are not shipped, and the losses.

The forward pass equals the model's own for full images, except that background patches may be left out, which makes
early pre-training about twice as fast. A reduction may be at work in it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.pretrain_small.patches import DENSE
from benchmarks.pretrain_small.pool import TEXTS, Batch
from pumer.backbones import Reduction
from pumer.patching import patch
from pumer.reducers import NoReduction, ReductionConfig
from pumer.world.entailment import LABELS

_DENSE_WIDTHS = [count + 1 for count in DENSE.values()]
_PLAIN = NoReduction()
_TEMPERATURE = 0.1
"""Of the softmax over cosines that separates phrases."""


@dataclass(frozen=True)
class Seen:
    """What the heads read.

    Attributes:
        shown: (B, K, D) patches a third of the way up: what is where.
        asked: (B, K, D) patches two thirds of the way up: which of it the sentence is about.
        found: (B, D) the sentence's first token below the last layers: where that is.
        text: (B, T, D) words after the last layer.
        pooled: (B, P) what the answer is read from.
        asked_for: (B, L, K) how much of the words' attention each patch gets in L layers, of 1 in all; None if the
            model does not tell, or a reduction is at work.
        alike: (B, L, T, T) how alike two words are to a reducer that merges, in L layers, as a cosine; likewise.
    """

    shown: Tensor
    asked: Tensor
    found: Tensor
    text: Tensor
    pooled: Tensor
    asked_for: Tensor | None = None
    alike: Tensor | None = None


class Trainee(nn.Module):
    """A question answering model with further heads: words, matching, entailment, pairs of images, patches.

    Args:
        model: fresh or not.
        width: of the states.
        pooled: width of what the answer is read from.
        vocabulary: words of the tokenizer.
    """

    def __init__(self, model: nn.Module, width: int, pooled: int, vocabulary: int) -> None:
        """Fresh heads."""
        super().__init__()
        self.model: Any = patch(model, _PLAIN)
        self.dense_norm, self.dense = nn.LayerNorm(width), nn.Linear(width, sum(_DENSE_WIDTHS))
        self.role_norm, self.role = nn.LayerNorm(width), nn.Linear(width, 3)
        self.words = nn.Linear(width, vocabulary)
        self.match = nn.Linear(pooled, 2)
        self.place_norm, self.place = nn.LayerNorm(width), nn.Linear(width, 2 * DENSE["position"])
        self.label = nn.Linear(pooled, len(LABELS))
        self.named = nn.Linear(width, DENSE["position"])
        self.claim = nn.Linear(width, 2)
        wide = 2 * pooled
        self.pair = nn.Sequential(nn.Linear(wide, wide), nn.LayerNorm(wide), nn.GELU(), nn.Linear(wide, 2))

    def forward(
        self, batch: Batch, keep: Tensor | None = None, reduction: ReductionConfig = _PLAIN
    ) -> dict[str, Tensor]:
        """Run the model.

        Args:
            batch: B samples.
            keep: (B, K) raster indices of the patches to show; None shows all.
            reduction: at work in the model's layers.

        Returns:
            logits: answers (B, A), match (B, 2), words (B, T, V), label (B, 3),
            pair (B, 2): of this image and the next, places (B, T, 9) and claims (B, T, 2) of the words; without a
            reduction also dense (B, K, sum of values), role (B, K, 3), place (B, 18): where the sentence's target and
            where its anchor is; and asked_for and alike, see `Seen`.
        """
        seen = self.look(batch, keep, Reduction(reduction))
        out = {
            "answers": self.model.classifier(seen.pooled),
            "match": self.match(seen.pooled),
            "words": self.words(seen.text),
            "label": self.label(seen.pooled),
            "places": self.named(seen.text),
            "claims": self.claim(seen.text),
            "pair": self.pair(torch.cat([seen.pooled, seen.pooled.roll(-TEXTS, 0)], 1)),
        }
        if reduction is not _PLAIN:  # patches are not where they were
            return out
        if seen.asked_for is not None:
            out["asked_for"] = seen.asked_for
        if seen.alike is not None:
            out["alike"] = seen.alike
        return out | {
            "dense": self.dense(self.dense_norm(seen.shown)),
            "role": self.role(self.role_norm(seen.asked)),
            "place": self.place(self.place_norm(seen.found)),
        }

    @abstractmethod
    def look(self, batch: Batch, keep: Tensor | None, reduction: Reduction) -> Seen:
        """Run the model's layers."""


def likeness(keys: Tensor) -> Tensor:
    """How alike tokens are to a reducer that merges: cosines (B, T, T) of attention keys (B, H, T, Dh)."""
    features = F.normalize(keys.mean(1), dim=-1)
    return features @ features.transpose(1, 2)


def choose_patches(batch: Batch, count: int) -> Tensor:
    """Patches to show: those of objects first, then background at random.

    Returns:
        (B, count) raster indices, ascending.
    """
    rank = torch.rand(batch.roles.shape) + (batch.dense[:, :, 0] > 0) + (batch.roles > 0)
    return rank.topk(count, 1).indices.sort(1).values


def losses(out: dict[str, Tensor], batch: Batch, keep: Tensor | None) -> dict[str, Tensor]:
    """The pre-training losses, each a mean over what it concerns.

    The answers' loss is the sum of a softmax cross-entropy, which learns fast, and a binary cross-entropy summed over
    answers, which leaves logits that fit the task's own loss.
    """
    result = _patch_losses(out, batch, keep) if "dense" in out else {}
    if "asked_for" in out:
        result["ground"] = _grounding(out["asked_for"], batch.roles if keep is None else batch.roles.gather(1, keep))
    if "alike" in out:
        result["phrase"] = _phrasing(out["alike"], batch.phrases)
    asked = batch.answers >= 0
    captions = batch.true >= 0
    logits, answers = out["answers"][asked], batch.answers[asked]
    target = F.one_hot(answers, logits.shape[1]).float()
    result["answer"] = F.cross_entropy(logits, answers, reduction="sum") / max(1, len(answers))
    result["binary"] = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / max(1, len(answers))
    result["match"] = F.cross_entropy(out["match"], batch.true, reduction="sum") / captions.sum().clamp(min=1)
    result["words"] = F.cross_entropy(out["words"].flatten(0, 1), batch.words.flatten(), reduction="sum")
    result["words"] = result["words"] / (batch.words >= 0).sum().clamp(min=1)
    result["label"] = F.cross_entropy(out["label"], batch.labels, reduction="sum")
    result["label"] = result["label"] / (batch.labels >= 0).sum().clamp(min=1)
    result["pair"] = F.cross_entropy(out["pair"], batch.pairs, reduction="sum") / (batch.pairs >= 0).sum().clamp(min=1)
    named = batch.places >= 0
    result["named"] = F.binary_cross_entropy_with_logits(
        out["places"], batch.places.clamp(min=0).float(), weight=named.float(), reduction="sum"
    ) / named.sum().clamp(min=1)
    result["claim"] = F.cross_entropy(out["claims"].flatten(0, 1), batch.claims.flatten(), reduction="sum")
    result["claim"] = result["claim"] / (batch.claims >= 0).sum().clamp(min=1)
    return result


def _patch_losses(out: dict[str, Tensor], batch: Batch, keep: Tensor | None) -> dict[str, Tensor]:
    """The losses of the heads that sit below the last layer."""
    dense, roles = batch.dense, batch.roles
    if keep is not None:
        dense, roles = dense.gather(1, keep[:, :, None].expand(-1, -1, dense.shape[2])), roles.gather(1, keep)
    parts = zip(out["dense"].split(_DENSE_WIDTHS, 2), dense.unbind(2), strict=True)
    shown = [F.cross_entropy(logits.flatten(0, 1), labels.flatten()) for logits, labels in parts]
    role = F.cross_entropy(out["role"].flatten(0, 1), roles.flatten())
    return {"dense": torch.stack(shown).sum(), "role": role, "place": _place_loss(out["place"], batch)}


def _grounding(asked_for: Tensor, roles: Tensor) -> Tensor:
    """How surprised the words' attention is by the patches that their sentence is about."""
    about = roles > 0
    share = (asked_for * about[:, None]).sum(2)[about.any(1)]
    return -share.clamp(min=1e-6).log().mean() if len(share) else asked_for.sum() * 0


def _phrasing(alike: Tensor, phrases: Tensor) -> Tensor:
    """How surprising it is that a token's nearest are of its own part of the sentence."""
    real = phrases >= 0
    others = real[:, None] & real[:, :, None] & ~torch.eye(real.shape[1], dtype=torch.bool)
    own = others & (phrases[:, None] == phrases[:, :, None])
    logits = (alike / _TEMPERATURE).masked_fill(~others[:, None], -torch.inf)
    log_share = logits.masked_fill(~own[:, None], -torch.inf).logsumexp(3) - logits.logsumexp(3)
    return -log_share.transpose(1, 2)[own.any(2)].mean()


def _place_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Where target and anchor are, for sentences that have both: the two things a relation is computed from."""
    position = batch.dense[:, :, list(DENSE).index("position")] - 1
    places = [position.masked_fill(batch.roles != role, -1).amax(1) for role in (1, 2)]
    both = (places[0] >= 0) & (places[1] >= 0)
    if not both.any():
        return logits.sum() * 0
    parts = logits[both].chunk(2, 1)
    losses = [F.cross_entropy(part, place[both]) for part, place in zip(parts, places, strict=True)]
    return torch.stack(losses).sum()
