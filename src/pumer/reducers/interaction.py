"""Pruning by image-text interaction: how strong it is says when an image is pruned, within a budget for each prompt."""

from dataclasses import dataclass
from math import ceil, exp, log1p
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from pumer.functional import asked_for, ordered
from pumer.reducers.base import TEXT_ROWS, Place, Ratio, Reducer
from pumer.reducers.cues import Cues
from pumer.reducers.decisions import protected, tables_of, text_stays
from pumer.reducers.layered import LayeredConfig
from pumer.reducers.tables import Rule
from pumer.tokens import GONE, Decision
from pumer.utils.config import config


@config
class InteractionConfig(LayeredConfig):
    """Spread a budget of image tokens over the layers, by how much text and image tell about each other there.

    Each layer keeps the image tokens that the text attends to most. How many is a share of what is left of the
    prompt's budget, by a logistic curve over the layers: the more mutual information there is between the words and
    the image tokens that they attend to, the flatter the curve, so that many tokens go early; without any, most stay
    until the ``midpoint``.

    Source: Wang et al., "AutoPrune: Each Complexity Deserves a Pruning Policy", NeurIPS 2025 (arXiv 2509.23931): the
    logistic curve, whose slope is ``max(slope - sensitivity * information, 0)``, and the budget. Pruning by the
    interaction of image and text inside the language model is also the second step of Yu et al., "Balancing
    Performance and Efficiency: A Multimodal Large Language Model Pruning Method based Image Text Interaction", 2024
    (arXiv 2409.01162).

    Differs from the papers: each layer measures the information anew and spends from what the earlier ones left,
    where AutoPrune draws the whole curve once; the budget counts the tokens after ``layers``, not operations.

    Attributes:
        prune_ratio: Fraction of a prompt's image tokens that are gone after one of the ``layers``, on average over
            them, in [0, 1). With one layer, what every prompt loses there. One token always stays.
        slope: Slope of the curve, per layer, without any information.
        sensitivity: What one nat of information takes off the slope.
        midpoint: Layer at which the curve is steepest. This default, like those above, is for a decoder of 32 layers.
    """

    stack: Literal["decoder"] = "decoder"
    prune_ratio: Ratio = 0.0
    slope: Annotated[float, Field(ge=0)] = 0.4
    sensitivity: Annotated[float, Field(ge=0)] = 0.2
    midpoint: float = 14.9

    method: ClassVar[str] = "interaction"
    amounts: ClassVar[tuple[str, ...]] = ("prune_ratio",)
    stacks: ClassVar[tuple[str, ...]] = ("decoder",)

    def reducers(self) -> dict[Place, Reducer]:
        """One reducer per layer; none where nothing is removed."""
        return {("decoder", layer): InteractionReducer(self, layer) for layer in self.layers if self.prune_ratio}


@dataclass(frozen=True)
class InteractionReducer(Rule):
    """The reducer of one layer.

    Attributes:
        config: The method's settings.
        layer: Which layer.
    """

    config: InteractionConfig
    layer: int

    needs: ClassVar[frozenset[str]] = frozenset({TEXT_ROWS})

    def kept(self, n: int) -> int:
        """The most image tokens that may be left where at most ``n`` enter, since earlier layers kept their share."""
        config, before, bound = self.config, 1.0, 1.0
        for rest, layer in zip(range(len(config.layers), 0, -1), config.layers, strict=True):
            if layer <= self.layer:
                most = (1 - config.prune_ratio) * rest * InteractionReducer(config, layer).largest
                before, bound = bound, min(bound, most)
        return min(n, ceil(bound / before * n) + 1)

    def decide(self, cues: Cues) -> Decision:
        """Prune image tokens; text stays."""
        found, mask = tables_of(cues, self), cues.image_mask
        rows, asking = cues.asking_rows()
        asking, held = asking.to(rows.dtype), protected(cues, found) & mask
        information = mutual_information(rows.mean(dim=1) * asking[:, :, None] * mask[:, None])
        wanted = self._budget(cues) * self._share(information)
        left = (wanted - 1e-3).ceil().long().clamp(min=1)  # a rounding error is no token
        left = torch.minimum(torch.maximum(left, held.sum(dim=1)), cues.tokens.lengths[:, 1])
        score = asked_for(rows, asking).masked_fill(held, torch.inf).masked_fill(~mask, -torch.inf)
        beyond = found.rank[: found.image] >= left[:, None]
        stays = ~torch.empty_like(beyond).scatter_(1, ordered(score, descending=True), beyond)
        code = torch.where(stays, 2 * (stays.cumsum(dim=1) - 1 + found.text_left), GONE)
        return text_stays(cues, found, code, left, counted=False)

    def _budget(self, cues: Cues) -> Tensor:
        """``(B,)`` image tokens that a prompt may keep after this layer and after the later ones, added up."""
        tokens, config = cues.tokens, self.config
        entered = (tokens.origin() >= 0).sum(dim=1) - tokens.lengths[:, 0]  # the text is all there
        budget = (entered * (1 - config.prune_ratio) * len(config.layers)).round()
        for earlier, _ in tokens.history:
            budget = budget - earlier.lengths[:, 1]
        return budget

    def _share(self, information: Tensor) -> Tensor:
        """``(B,)``: what part of the budget is for this layer: by the curve, and no more than by the full slope."""
        slope = (self.config.slope - self.config.sensitivity * information).clamp(min=0)
        curve = [logsigmoid(slope * (self.config.midpoint - layer)) for layer in self._coming]
        share: Tensor = 1 / torch.stack([(each - curve[0]).exp() for each in curve]).sum(dim=0)
        return share.clamp(max=self.largest)

    @property
    def largest(self) -> float:
        """The share by the full slope."""
        at = [self.config.slope * (self.config.midpoint - layer) for layer in self._coming]
        curve = [min(x, 0) - log1p(exp(-abs(x))) for x in at]
        return 1 / sum(exp(each - curve[0]) for each in curve)

    @property
    def _coming(self) -> list[int]:
        return [layer for layer in self.config.layers if layer >= self.layer]


def mutual_information(attention: Tensor) -> Tensor:
    """Mutual information of words and image tokens.

    Args:
        attention: ``(B, R, V)``, 0 or more: taken, divided by its sum, as the probability of a word and an image token.

    Returns:
        ``(B,)`` in nats.
    """
    total = attention.sum(dim=(1, 2), keepdim=True)
    joint = attention / total.clamp(min=torch.finfo(attention.dtype).tiny)
    plogp = [torch.xlogy(p, p).flatten(1).sum(dim=1) for p in (joint, joint.sum(dim=2), joint.sum(dim=1))]
    return (plogp[0] - plogp[1] - plogp[2]).clamp(min=0)
