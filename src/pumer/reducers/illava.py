"""iLLaVA: what gets little attention is not dropped, but merged into the most similar token that stays."""

from dataclasses import replace
from typing import ClassVar, Literal

import torch

from pumer.functional import ordered, unit
from pumer.reducers.attention_received import AttentionReceivedConfig
from pumer.reducers.base import KEYS, SAMPLED_ROWS, Layer, Place, Ratio, Reducer
from pumer.reducers.cues import Cues
from pumer.reducers.decisions import counts, keep_all, protected, tables_of, text_stays
from pumer.reducers.tables import pruned
from pumer.tokens import GONE, Decision
from pumer.utils.config import config
from pumer.utils.errors import InputError


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
        vision_layers: 0-based layers of the vision encoder that merge as well, beside those of the decoder.
        vision_prune_ratio: The fraction of patches that each of them merges away.

    Example:
        >>> paper = ILLaVAConfig(layers=(8,), prune_ratio=0.3, vision_layers=(5, 6, 7, 8), vision_prune_ratio=0.14)
        >>> [stack for stack, _ in paper.places()]
        ['vision', 'vision', 'vision', 'vision', 'decoder']
    """

    stack: Literal["vision", "decoder"] = "decoder"
    vision_layers: tuple[Layer, ...] = ()
    vision_prune_ratio: Ratio = 0.0

    method: ClassVar[str] = "illava"
    stacks: ClassVar[tuple[str, ...]] = ("vision", "decoder")
    prunes: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({SAMPLED_ROWS, KEYS})

    def __post_init__(self) -> None:
        """Check and sort the layers."""
        object.__setattr__(self, "vision_layers", tuple(sorted(self.vision_layers)))
        if self.stack == "vision" and self.vision_layers:
            raise InputError(
                f"both vision_layers={list(self.vision_layers)} and stack='vision' are given; put all into layers"
            )
        super().__post_init__()

    def places(self) -> list[Place]:
        """The layers of the encoder, and of the decoder."""
        return [*(("vision", layer) for layer in self.vision_layers), *super().places()]

    def reducers(self) -> dict[Place, Reducer]:
        """One for all layers of a stack; none where nothing is removed."""
        amounts = {"vision": self.vision_prune_ratio if self.vision_layers else self.prune_ratio}
        found: dict[Place, Reducer] = {}
        for stack, layer in self.places():
            if ratio := amounts.get(stack, self.prune_ratio):
                found[stack, layer] = replace(self, prune_ratio=ratio)
        return found

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
