"""The limit of a schedule: the same model with the scheduled numbers of tokens by plain slices, without decisions.

This is the most that a reduction can gain, whatever it decides: the first tokens of each block stay, at the cost of one
slice. Only for measuring, with texts and images of full length; the outputs mean nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from pumer.kernels.layout import padded
from pumer.reducers import PuMerConfig, ReductionConfig, Step, config_from_dict, config_to_dict
from pumer.reducers.base import Place, Reducer
from pumer.reducers.cues import Cues
from pumer.reducers.tables import tables
from pumer.tokens import GONE, Decision, Tokens

METHOD = "limit"


@dataclass(frozen=True, kw_only=True)
class LimitConfig(ReductionConfig):
    """The limit of a `PuMerConfig`, for `pumer.patch`; not a method in `pumer.reducers.METHODS`."""

    schedule: tuple[Step, ...] = ()

    method: ClassVar[str] = METHOD

    @classmethod
    def of(cls, config: PuMerConfig) -> "LimitConfig":
        """The limit of a schedule."""
        return cls(schedule=config.schedule, max_image_tokens=config.max_image_tokens)

    def reducers(self) -> dict[Place, Reducer]:
        """One per step."""
        return {(step.stack, step.layer): SlicingReducer(step) for step in self.schedule}


def limit_of(reduction: Mapping[str, Any]) -> dict[str, Any]:
    """The limit of a PuMer reduction, both as plain data for `measured_reduction`."""
    config = config_from_dict(reduction)
    if not isinstance(config, PuMerConfig):
        raise ValueError(f"the limit of method '{config.method}' is unknown; give a reduction of method 'pumer'")
    return config_to_dict(LimitConfig.of(config))


def measured_reduction(value: Mapping[str, Any] | str) -> ReductionConfig:
    """A reduction of plain data: of any method, given by its name alone if it needs no settings, or a limit."""
    if isinstance(value, str):
        return config_from_dict({"method": value})
    if value.get("method") != METHOD:
        return config_from_dict(value)
    config = config_from_dict({**value, "method": PuMerConfig.method})
    assert isinstance(config, PuMerConfig)  # for the type checker
    return LimitConfig.of(config)


@dataclass(frozen=True)
class SlicingReducer:
    """Keeps the first tokens of each block, as many as a step would."""

    step: Step
    needs: frozenset[str] = frozenset()

    def decide(self, cues: Cues) -> Decision:
        """A constant, made once for each shape."""
        tokens = cues.tokens
        found = tables(self.step, *tokens.slots, tokens.size.device)
        left, states = (found.text_left, found.image_left), tokens.streams[0]
        code, lengths = _constants(tokens.slots, left, states.device)
        bias = None
        if tokens.text_length == 0:  # METER carries the bias of its vision encoder into the cross-modal layers
            bias = _open(sum(left), states.dtype, states.device).expand(len(states), -1, -1, -1)
        return FirstTokens(code.expand(len(states), -1), lengths.expand(len(states), -1), left, bias=bias)


class FirstTokens(Decision):
    """The decision that the first tokens of each block stay, carried out by slices."""

    def carry_out(self, tokens: Tokens) -> Tokens:
        """Contiguous states, because what follows would copy others several times; sizes of one."""
        T, (text, image) = tokens.text_length, self.slots
        if len(tokens.streams) == 2:
            words, patches = tokens.streams
            streams: tuple[Tensor, ...] = words[:, :text].contiguous(), patches[:, :image].contiguous()
        elif text == T:
            streams = (tokens.streams[0][:, : text + image].contiguous(),)
        else:
            states = tokens.streams[0]
            streams = (torch.cat([states[:, :text], states[:, T : T + image]], dim=1),)
        biases = tuple(
            bias if bias is None else _open(x.shape[1], bias.dtype, bias.device).expand(len(x), -1, -1, -1)
            for bias, x in zip(tokens.biases, streams, strict=True)
        )
        size, history = tokens.size[:, : text + image], (*tokens.history, (self, 0))
        return Tokens(streams, size, biases, text, tokens.origin, history, self.lengths)


@lru_cache(maxsize=1024)
def _constants(slots: tuple[int, int], left: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """``code (1, N)`` and ``lengths (1, 2)`` of a `Decision`."""
    code, start = [], 0
    for before, after in zip(slots, left, strict=True):
        code += [2 * (start + rank) if rank < after else GONE for rank in range(before)]
        start += after
    with torch.inference_mode(False):
        return torch.tensor([code], dtype=torch.int64).to(device), torch.tensor([left]).to(device)


@lru_cache(maxsize=1024)
def _open(tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``(1, 1, 1, tokens)``, an attention bias that hides nothing, in rows as long as fused attention asks for."""
    with torch.inference_mode(False):
        return torch.zeros(1, 1, 1, padded(tokens), dtype=dtype, device=device)[..., :tokens]
