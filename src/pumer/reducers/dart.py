"""DART: what repeats a few pivotal tokens goes, whatever its importance."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from pumer.functional import gather_tokens, ordered, unit
from pumer.reducers.base import KEYS, STATES
from pumer.reducers.cues import Cues
from pumer.reducers.layered import ScoringConfig
from pumer.reducers.tables import ranks
from pumer.utils.config import config

_PIVOTS = 4  # of the image, and as many of the text: what the paper's experiments use


@config
class DARTConfig(ScoringConfig):
    """Keep a few pivots and, of the other image tokens, those that are least similar to one of them.

    Pivots are the four image tokens and the four text tokens with the longest keys (L1 norm over all heads); of the
    text, those that see an image. Each pivot ranks the other image tokens by cosine similarity of states, the least
    similar first; a token's best rank counts. No attention is looked at.

    Source: Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More",
    EMNLP 2025; its experiments prune after the second layer: layers=[1].

    Differs from the paper: pivots choose at the same time, not one after the other, so that as many tokens are left
    as the ratio says; the states are not normalised by the model's last layer norm first.
    """

    stack: Literal["decoder"] = "decoder"

    method: ClassVar[str] = "dart"
    stacks: ClassVar[tuple[str, ...]] = ("decoder",)
    needs: ClassVar[frozenset[str]] = frozenset({KEYS, STATES})

    def score(self, cues: Cues) -> Tensor:
        """Minus the best rank; above zero for the image's own pivots, the longest key first."""
        segments, mask = cues.tokens.segments, cues.image_mask
        assert segments is not None  # for the type checker: in a decoder text and image interleave
        (T, _), at = cues.tokens.slots, segments.index
        images = (cues.tokens.mask & (segments.segment > 0)).cumsum(dim=1)
        asks = cues.words & (images.gather(1, at[:, :T]) > 0)
        image, image_there = _longest(cues.image_key, mask)
        text, text_there = _longest(cues.text_key, asks)
        slots = torch.cat([at[:, T:].gather(1, image), at[:, :T].gather(1, text)], dim=1)
        pivots = unit(gather_tokens(cues.tokens.states, slots))
        similarity = torch.bmm(pivots, unit(cues.image_states).transpose(1, 2))  # (B, P, V)
        rank = ranks(mask.shape[1], mask.device).expand_as(similarity)
        own = torch.zeros_like(mask).scatter_(1, image, image_there)
        similarity = similarity.masked_fill((own | ~mask)[:, None], torch.inf)
        order = ordered(similarity.flatten(0, 1)).view_as(rank)
        chosen = torch.empty_like(order).scatter_(2, order, rank)
        there = torch.cat([image_there, text_there], dim=1)
        best = chosen.masked_fill(~there[:, :, None], mask.shape[1]).amin(dim=1)
        longest_first = ranks(_PIVOTS, mask.device).flip(0)[: image.shape[1]] + 1
        score = (-best).scatter(1, image, torch.where(image_there, longest_first, -mask.shape[1]))
        return score.to(torch.float32)


def _longest(key: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens ``(B, P)`` of a block with the longest keys ``(B, H, n, Dh)``, and which of these are real."""
    dtype = torch.promote_types(key.dtype, torch.float32)
    norm = torch.linalg.vector_norm(key, ord=1, dim=(1, 3), dtype=dtype).masked_fill(~mask, -1)
    index = ordered(norm, descending=True)[:, :_PIVOTS]
    return index, mask.gather(1, index)
