"""Prompts that `generate` shortens, and the later turns of a conversation, which count on from what was left.

A cache remembers what was left of the prompts before; in what `generate` returns, the ids of dropped tokens are back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from pumer.backbones.shortening import reads_images, shorten_prompts
from pumer.reducers.shortening.base import ShorteningConfig
from pumer.utils.errors import InputError

TURN = "pumer_turn"
"""The attribute of a cache that holds what was left of the prompts before."""


@dataclass(frozen=True, eq=False)
class Generation:
    """One call of ``generate`` whose prompts are shortened, or were in an earlier turn.

    Attributes:
        inputs: Of the stock ``generate``.
        whole: ``(B, N)``, the prompts before.
        length: Tokens of the shortened ones.
        turn: What a later turn has to know.
    """

    inputs: dict[str, Any]
    whole: Tensor
    length: int
    turn: "Turn"

    def arguments(self, given: Mapping[str, Any], defaults: Sequence[Any]) -> dict[str, Any]:
        """The inputs, and limits of the length with the prompt (``max_length``, ``min_length``) for the shorter one.

        Args:
            given: What ``generate`` is called with, by name.
            defaults: Generation configs, the first one first; None counts for nothing.
        """
        arguments, fewer = dict(self.inputs), self.whole.shape[1] - self.length
        for side in ("max", "min"):
            limit = _setting(f"{side}_length", given, defaults)
            if limit and _setting(f"{side}_new_tokens", given, defaults) is None:
                arguments[f"{side}_length"] = max(limit - fewer, 0)
        return arguments

    def close(self, output: Any) -> Any:
        """Give the ids of dropped tokens back in what ``generate`` returns, and leave a note on the cache."""
        cache = self.inputs.get("past_key_values")
        if isinstance(output, Tensor):
            output = self._whole(output)
        else:
            output.sequences = self._whole(output.sequences)
            cache = output.past_key_values if cache is None else cache
        if cache is not None:
            setattr(cache, TURN, self.turn)
        return output

    def _whole(self, sequences: Tensor) -> Tensor:
        whole = self.whole.to(sequences.device)
        return torch.cat([whole.repeat_interleave(len(sequences) // len(whole), 0), sequences[:, self.length :]], dim=1)


@dataclass(frozen=True, eq=False)
class Turn:
    """What was left of the prompts of earlier turns.

    Attributes:
        columns: ``(B, K)`` int64, where the tokens that are left stood.
        mask: ``(B, K)`` bool, which of them are real.
        length: How many there were.
    """

    columns: Tensor
    mask: Tensor
    length: int

    def shortened(self, whole: Tensor) -> Tensor:
        """Of values ``(B, N)`` of all tokens so far those that are left, and those that came later."""
        copies = len(whole) // len(self.columns)
        columns, mask = (x.repeat_interleave(copies, 0).to(whole.device) for x in (self.columns, self.mask))
        left = whole.gather(1, columns).masked_fill(~mask, 0)
        return torch.cat([left, whole[:, self.length :]], dim=1)


def shortened_generation(
    model: Any, given: Mapping[str, Any], defaults: Sequence[Any], config: ShorteningConfig | None
) -> Generation | None:
    """Shorten the prompts of a call of ``generate``; None if there is nothing to shorten.

    Args:
        model: The model of images and text.
        given: What generate is called with, by name.
        defaults: Generation configs, the first one first; None counts for nothing.
        config: The method; None where only an earlier turn was shortened.

    Raises:
        InputError: See `pumer.shorten`.
    """
    cache: Any = given.get("past_key_values")
    turn: Turn | None = getattr(cache, TURN, None)
    if turn is not None and cache.get_seq_length() == 0:
        delattr(cache, TURN)  # it was used before, and is empty again
        turn = None
    if turn is not None and not reads_images(given):
        return _later(model, given, turn)
    if not reads_images(given) or (config is None and turn is None):
        return None
    if config is None:
        raise InputError(
            f"past_key_values holds {cache.get_seq_length()} tokens of a shortened prompt, to which no images can be "
            "added; give an empty cache"
        )
    if _setting("use_cache", given, defaults) is False:
        given = {**given, "use_cache": False}
    short, whole = shorten_prompts(model, given, config), given["input_ids"]
    if "input_ids" not in short.inputs and model.pumer_reduction.reduces("decoder"):
        raise InputError(
            f"a {type(model).__name__} of transformers {transformers.__version__} does not take encoded images, so "
            "that its decoder cannot reduce what was shortened before; install transformers 5.23 or later"
        )
    turn = Turn(short.columns, short.mask, short.length)
    return Generation({**short.inputs, "input_ids": short.ids}, whole, short.ids.shape[1], turn)


def _setting(name: str, given: Mapping[str, Any], defaults: Sequence[Any]) -> Any:
    """A setting of generate."""
    found = (given.get(name), *(getattr(config, name, None) for config in defaults))
    return next((value for value in found if value is not None), None)


def _later(model: Any, given: Mapping[str, Any], turn: Turn) -> Generation:
    whole = given["input_ids"]
    mask = torch.ones_like(whole) if given.get("attention_mask") is None else given["attention_mask"]
    short = {**given, "input_ids": turn.shortened(whole), "attention_mask": turn.shortened(mask)}
    for name, x in given.items():
        if isinstance(x, Tensor) and x.shape == whole.shape:
            short[name] = turn.shortened(x)
    if not callable(getattr(model, "get_rope_index", None)):  # others count on from what the first turn has left
        short["position_ids"] = turn.shortened((mask.long().cumsum(dim=1) - 1).clamp(min=0))
    return Generation(short, whole, short["input_ids"].shape[1], turn)
