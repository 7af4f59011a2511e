"""DynamicViT: small learned predictors say which image tokens stay (Rao et al., NeurIPS 2021), from the paper.

While it trains, no token is removed: a dropped one is hidden from attention, by a Gumbel sample whose gradient flows
through as if it were soft. Otherwise the tokens with the highest scores are gathered, as in every other method.

Differs from the paper: a predictor gives one logit instead of two that a softmax compares (the same model, with fewer
weights); its loss is about the tokens that reach its layer instead of all that entered the model, so that each one
answers for its own ratio; a hidden token does not see itself either, which nothing that stays can notice; and it starts
with samples that keep as many tokens as it shall, where the paper's keep half of them.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import log
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import gelu

from pumer.reducers.base import STATES, Place, Reducer
from pumer.reducers.cues import Cues
from pumer.reducers.decisions import keep_all, protected, prune_to, tables_of
from pumer.reducers.layered import PruningConfig
from pumer.reducers.learned import LearnedReducer
from pumer.tokens import Decision, attention_bias
from pumer.utils.config import config

_FAINT = 1e-6
"""How much a token that is dropped in training still counts; its logarithm is finite, and so is its gradient."""


@config
class DynamicViTConfig(PruningConfig):
    """Prune the image tokens that learned predictors score lowest, as DynamicViT does.

    Attributes:
        ratio_weight: Weight, in the training loss, of the squared difference between the fraction of tokens that the
            predictors keep and the one they should (the paper's lambda for its ratio loss).
        temperature: Of the Gumbel-softmax.
    """

    ratio_weight: Annotated[float, Field(ge=0)] = 2.0
    temperature: Annotated[float, Field(gt=0)] = 1.0

    method: ClassVar[str] = "dynamicvit"
    stacks: ClassVar[tuple[str, ...]] = ("fusion", "vision")

    def reducers(self) -> dict[Place, Reducer]:
        """None without weights."""
        return {}

    def learned(self, widths: Mapping[str, int]) -> dict[Place, Reducer]:
        """A predictor per layer; the same ones every time, until they are trained."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # of the CPU alone, which is what is put back
            return {place: TokenPredictor(self, widths[place[0]]) for place in self.places() if self.prune_ratio}


class TokenPredictor(LearnedReducer):
    """Scores the image tokens of one layer, each from its own state and the mean of all (Eq. 2 to 4 of the paper)."""

    needs = frozenset({STATES})

    def __init__(self, config: DynamicViTConfig, width: int) -> None:
        """Fresh weights.

        Args:
            config: How much to prune.
            width: ``D``.
        """
        super().__init__()
        self.config = config
        half, quarter = width // 2, max(width // 4, 1)
        self.norm = nn.LayerNorm(width)
        self.own, self.whole = nn.Linear(width, half), nn.Linear(width, half)
        self.mix, self.squeeze, self.score = nn.Linear(2 * half, half), nn.Linear(half, quarter), nn.Linear(quarter, 1)
        nn.init.constant_(self.score.bias, log((1 - config.prune_ratio) / config.prune_ratio))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Logits of staying.

        Args:
            states: ``(B, V, D)``.
            mask: ``(B, V)`` bool, tokens that are still there.

        Returns:
            ``(B, V)``.
        """
        x = self.norm(states.to(self.norm.weight.dtype))
        own, whole = gelu(self.own(x)), gelu(self.whole(x))
        share = mask.to(x.dtype)[:, :, None]
        mean = (whole * share).sum(dim=1, keepdim=True) / share.sum(dim=1, keepdim=True).clamp(min=1)
        x = torch.cat([own, mean.expand_as(own)], dim=2)
        logits: Tensor = self.score(gelu(self.squeeze(gelu(self.mix(x)))))
        return logits[:, :, 0]

    def decide(self, cues: Cues) -> Decision:
        """Prune image tokens, or hide them while the predictor trains; text stays."""
        if self.training and torch.is_grad_enabled():
            return self._sample(cues)
        return prune_to(cues, self.config, self(cues.image_states, cues.image_mask).detach())

    def _sample(self, cues: Cues) -> Decision:
        before = cues.tokens.bias
        if before is None:
            before = attention_bias(cues.tokens.mask)
        bias = cues.columns(before)[:, 0, 0]
        here = cues.image_mask & (bias.detach() > log(_FAINT) / 2)
        logits = self(cues.image_states, here)
        # the difference of two Gumbel variables, drawn as one: compiled graphs take two equal draws for the same
        noise = torch.rand(logits.shape, device=logits.device).logit(eps=_FAINT).to(logits.dtype)
        soft = ((logits + noise) / self.config.temperature).sigmoid()
        stays = (soft > 0.5).to(soft.dtype) - soft.detach() + soft
        stays = torch.where(protected(cues, tables_of(cues, self.config)), torch.ones_like(stays), stays)
        n, wanted = here.sum(dim=1), 1 - self.config.prune_ratio
        share = torch.where(n > 0, (stays * here).sum(dim=1) / n.clamp(min=1), wanted)  # a prompt may have no image
        self.owe(self.config.ratio_weight * ((share - wanted) ** 2).mean())
        return replace(keep_all(cues), bias=before + cues.spread((stays + _FAINT).log(), 0)[:, None, None])
