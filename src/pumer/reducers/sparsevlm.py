"""SparseVLM: words that resemble the image rate its tokens; of what they rate low, a part is kept as clusters."""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pumer.functional import HALF, asked_for, compact, gather_tokens, ordered
from pumer.reducers.base import STATES, TEXT_ROWS, Ratio
from pumer.reducers.cues import Cues
from pumer.reducers.decisions import counts, protected, tables_of, text_stays
from pumer.reducers.layered import PruningConfig
from pumer.reducers.tables import ranks
from pumer.tokens import GONE, Decision
from pumer.utils.config import config

_LARGE = 10  # recycled tokens in a cluster, on average: the paper's theta is 10%


@config
class SparseVLMConfig(PruningConfig):
    """Keep the image tokens to which text raters attend most, and clusters of the next best ones.

    Raters are the words whose similarity to the image, a softmax over words averaged over image tokens, is not below
    the mean. Density peaks among the recycled tokens are the clusters' centres, where their means stand.

    Source: Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference",
    ICML 2025, section 3.

    Differs from the paper: the amount is given, not found by the rank of the raters' attention; raters are chosen in
    each of the layers by its states, not once by embeddings, and only among the last words of a prompt, those that
    see an image (`pumer.reducers.cues.ASKING`); a cluster is the mean of its tokens, not their sum, so that its scale
    is that of a token, and stands where its centre stood, so that order is kept.

    Attributes:
        prune_ratio: Fraction of the image tokens that enter the reducer to remove, in [0, 1); clusters are counted
            among those that stay.
        recycle_ratio: Fraction of what is removed that goes into clusters, in [0, 1); the rest is lost.
    """

    stack: Literal["decoder"] = "decoder"
    recycle_ratio: Ratio = 0.3

    method: ClassVar[str] = "sparsevlm"
    stacks: ClassVar[tuple[str, ...]] = ("decoder",)
    needs: ClassVar[frozenset[str]] = frozenset({TEXT_ROWS, STATES})

    def kept(self, n: int) -> int:
        """Image tokens of ``n`` that are not lost."""
        return super().kept(n) + self.merges(n)

    def merges(self, n: int) -> int:
        """Image tokens of ``n`` that go into the centre of a cluster; at least one token stays beside clusters."""
        left = super().kept(n)
        return max(min(round(self.recycle_ratio * (n - left)), (_LARGE - 1) * (left - 1)), 0)

    def decide(self, cues: Cues) -> Decision:
        """Prune and cluster image tokens; text stays."""
        found, mask = tables_of(cues, self), cues.image_mask
        stay = protected(cues, found) & mask
        score = self.significance(cues).masked_fill(~mask, -torch.inf).masked_fill(stay, torch.inf)
        _, merged, left, _ = counts(found, cues.tokens.lengths)[:, 1, :, None].unbind(dim=1)
        clusters = (merged + _LARGE - 2) // (_LARGE - 1)
        best = torch.maximum(left - clusters, stay.sum(dim=1, keepdim=True))
        own = found.rank[: found.image].expand(mask.shape)
        rank = torch.empty_like(own).scatter_(1, ordered(score, descending=True), own)
        stands, owner = mask & (rank < best), own
        if found.merges_image:
            clusters = (left - best).clamp(min=0)  # fewer where more is protected than the amount leaves
            recycled = mask & (rank >= best) & (rank < best + merged + clusters) & (clusters > 0)
            most = -(-found.merged // (_LARGE - 1))
            at, there = compact(recycled, found.merged + most)
            centre = density_peaks(gather_tokens(cues.image_states, at), there, clusters, most)
            owner = own.scatter(1, at, torch.where(there, at.gather(1, centre), at))
            stands = stands | (recycled & (owner == own))
        code = torch.where(stands, 2 * (stands.cumsum(dim=1) - 1 + found.text_left), GONE)
        code = torch.where(owner == own, code, code.gather(1, owner) + 1)
        return replace(text_stays(cues, found, code, stands.sum(dim=1)), proportional=False)

    def significance(self, cues: Cues) -> Tensor:
        """``(B, V)``: attention of the raters, summed over them and over heads."""
        rows, asking = cues.asking_rows()
        return asked_for(rows, raters(cues, asking).to(rows.dtype))


def raters(cues: Cues, asking: Tensor) -> Tensor:
    """Which of the last words rate the image.

    Args:
        cues: With the states.
        asking: ``(B, R)`` bool, which rows there are of `Cues.asking_rows`.

    Returns:
        ``(B, R)`` bool; none where no word sees an image.
    """
    segments, states, mask = cues.tokens.segments, cues.tokens.states, cues.image_mask
    assert segments is not None  # for the type checker: in a decoder text and image interleave
    words = cues.words
    first = words.sum(dim=1, keepdim=True) - asking.sum(dim=1, keepdim=True)
    rank = (first + asking.cumsum(dim=1) - 1).clamp(min=0)
    at = segments.index[:, : words.shape[1]].gather(1, rank)
    images = (cues.tokens.mask & (segments.segment > 0)).cumsum(dim=1)
    asking = asking & (images.gather(1, at) > 0)
    if states.dtype in HALF:
        states = states.float()
    text, image = gather_tokens(states, at), gather_tokens(states, segments.index[:, words.shape[1] :])
    logits = torch.bmm(image, text.transpose(1, 2))
    resembles = logits.masked_fill(~asking[:, None], torch.finfo(logits.dtype).min).softmax(dim=2)
    resembles = torch.bmm(mask[:, None].to(logits.dtype), resembles)[:, 0] * asking
    mean = resembles.sum(dim=1, keepdim=True) / asking.sum(dim=1, keepdim=True).clamp(min=1)
    return asking & (resembles >= mean * (1 - 1e-6))  # where all are alike, rounding must not leave none


def density_peaks(states: Tensor, there: Tensor, clusters: Tensor, most: int) -> Tensor:
    """Tokens that are dense and far from what is denser are centres; the others go to the nearest one.

    Args:
        states: ``(B, R, D)``.
        there: ``(B, R)`` bool, which tokens there are, compact.
        clusters: ``(B, 1)`` int64, how many; a token's density is that of so many neighbours, itself among them.
        most: The most clusters a sample has (static).

    Returns:
        ``(B, R)`` int64, each token's centre: its own index if it is one.
    """
    if states.dtype in HALF:
        states = states.float()
    distance = torch.cdist(states, states, compute_mode="donot_use_mm_for_euclid_dist") / states.shape[2] ** 0.5
    R, within = states.shape[1], ranks(most, states.device) < clusters
    near = distance.masked_fill(~there[:, None], torch.inf).topk(most, dim=2, largest=False)[0]
    density = -near.square().masked_fill(~within[:, None], 0).sum(dim=2) / clusters.clamp(min=1)  # its logarithm
    rank, mine, other = ranks(R, states.device), density[:, :, None], density[:, None]
    denser = there[:, None] & ((other > mine) | ((other == mine) & (rank < rank[:, None])))
    apart = distance.masked_fill(~(there[:, :, None] & there[:, None]), 0).amax(dim=(1, 2))
    gap = torch.minimum(distance.masked_fill(~denser, torch.inf).amin(dim=2), apart[:, None])
    order = ordered((density + gap.log()).masked_fill(~there, -torch.inf), descending=True)
    centre = torch.zeros_like(there).scatter_(1, order[:, :most], within)
    return torch.where(centre, rank, distance.masked_fill(~centre[:, None], torch.inf).argmin(dim=2))
