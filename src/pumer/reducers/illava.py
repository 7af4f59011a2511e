"""iLLaVA: what gets little attention is not dropped, but merged into the most similar token that stays."""

from dataclasses import replace
from typing import ClassVar, Literal

import torch

from pumer.functional import ordered, unit
from pumer.reducers.attention_received import AttentionReceivedConfig
from pumer.reducers.base import KEYS, SAMPLED_ROWS
from pumer.reducers.cues import Cues
from pumer.reducers.decisions import counts, keep_all, protected, tables_of, text_stays
from pumer.reducers.tables import pruned
from pumer.tokens import GONE, Decision
from pumer.utils.config import config


@config
class ILLaVAConfig(AttentionReceivedConfig):
    """Keep the image tokens that receive most attention, and merge each other one into the kept one most like it.

    Similarity is the cosine of keys averaged over heads; a token becomes the mean of its parts, each weighted by how
    many it has itself.

    Source: Hu et al., "iLLaVA: An Image is Worth Fewer Than 1/3 Input Tokens in Large Multimodal Models", ICLR 2026
    (arXiv 2412.06263). The authors' settings for images merge 92 of 729 tokens in each of layers 5 to 8 of the encoder,
    and 30% of the tokens in layer 8 of the decoder.

    Differs from the paper: the attention is that of a sample of evenly spaced rows, see `AttentionReceivedConfig`;
    amounts are fractions in the encoder too.

    Attributes:
        prune_ratio: Fraction of the real image tokens that enter the reducer to merge away, in [0, 1); two stay.
    """

    stack: Literal["vision", "decoder"] = "decoder"

    method: ClassVar[str] = "illava"
    stacks: ClassVar[tuple[str, ...]] = ("vision", "decoder")
    prunes: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({SAMPLED_ROWS, KEYS})

    def kept(self, n: int) -> int:
        """All of ``n``: none is gone, some are in another one's slot."""
        return n

    def merges(self, n: int) -> int:
        """Tokens of ``n`` that are merged away; two stay, for [CLS], where there is one, takes none in."""
        return max(min(pruned(self.prune_ratio, n), n - 2), 0)

    def decide(self, cues: Cues) -> Decision:
        """Merge image tokens; text stays."""
        found, mask = tables_of(cues, self), cues.image_mask
        if not found.merges_image:
            return replace(keep_all(cues), proportional=False)
        held = protected(cues, found) & mask
        length, _, left, _ = counts(found, cues.tokens.lengths)[:, 1].unbind(dim=1)
        left = torch.minimum(torch.maximum(left, held.sum(dim=1) + 1), length)  # somebody must take in what is merged
        beyond = found.rank[: found.image] >= left[:, None]
        score = self.score(cues).masked_fill(held, torch.inf).masked_fill(~mask, -torch.inf)
        stands = ~torch.empty_like(beyond).scatter_(1, ordered(score, descending=True), beyond) & mask
        key = unit(cues.image_key.mean(dim=1))
        similarity = torch.bmm(key, key.transpose(1, 2)).masked_fill_(~(stands & ~held)[:, None], -torch.inf)
        code = 2 * ((stands.cumsum(dim=1) - 1).clamp(min=0) + found.text_left)
        code = torch.where(stands, code, code.gather(1, similarity.argmax(dim=2)) + 1).masked_fill(~mask, GONE)
        return replace(text_stays(cues, found, code, left), proportional=False)
