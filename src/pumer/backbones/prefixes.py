"""What the layers of a decoder have in their caches, once prompts were shortened: masks for what comes later."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Prefix:
    """What a shortened layer has of a prompt in its cache; what follows are the tokens that came later.

    Attributes:
        mask: ``(B, L)`` bool, real tokens among the first L columns; None: all of them.
        length: ``L``.
        shift: How many columns fewer they are than in the first layer.
    """

    mask: Tensor | None
    length: int
    shift: int

    def columns(self, later: Tensor | None, total: int, batch: int, device: torch.device) -> Tensor | None:
        """``(B, total)`` bool, all columns that the layer has; None: all are real.

        Args:
            later: ``(B, M)`` bool, the columns of the first layer, or None: all are real.
            total: Columns.
            batch: ``B``, a multiple of the prompts: a cache may have been repeated for several continuations each.
            device: Of the layer.
        """
        if self.mask is None and later is None:
            return None
        mask = torch.ones(batch, total, dtype=torch.bool, device=device)
        if self.mask is not None:
            mask[:, : self.length] = self.mask.to(device).repeat_interleave(batch // len(self.mask), dim=0)
        if later is not None:
            after = later.to(device)[:, self.length + self.shift :][:, : total - self.length]
            mask[:, self.length : self.length + after.shape[1]] = after
        return mask

    def row(self, given: Tensor, total: int) -> Tensor:
        """``(B, 1, 1, total)``, what one word sees in that layer.

        Args:
            given: The same of the first layer, boolean or added to attention logits.
            total: Columns.
        """
        rest = given[..., self.length + self.shift :][..., : total - self.length]
        if self.mask is None:
            real = given.new_ones(len(given), 1, 1, self.length, dtype=torch.bool)
        else:
            real = self.mask.to(given.device).repeat_interleave(len(given) // len(self.mask), dim=0)[:, None, None]
        if given.dtype != torch.bool:
            real = given.new_zeros(real.shape).masked_fill_(~real, torch.finfo(given.dtype).min)
        return torch.cat([real, rest], dim=-1)


def prefixes_of(cache: Any) -> dict[int, Prefix]:
    """What the shortened layers have of the prompts so far, by layer."""
    found: dict[int, Prefix] = getattr(cache, "pumer_prefixes", None) or {}
    return found


def drop_stale(cache: Any) -> None:
    """Forget what does not fit the cache: it was emptied, or filled by a model that was not patched."""
    past, found = int(cache.get_seq_length()), prefixes_of(cache)
    if past == 0:
        cache.pumer_prefixes = {}
    elif not getattr(cache, "is_compileable", False):
        fits = {layer: int(cache.get_seq_length(layer)) == past - prefix.shift for layer, prefix in found.items()}
        cache.pumer_prefixes = {layer: prefix for layer, prefix in found.items() if fits[layer]}


def real_columns(mask: Any) -> Tensor | None:
    """``(B, M)`` bool, which columns of the first layer are real, of an attention mask in any form; None: all."""
    if isinstance(mask, dict):
        mask = mask.get("full_attention")
    if not isinstance(mask, Tensor):
        return None
    if mask.ndim == 4:  # made by generate, for a static cache: the last token sees all that are real
        mask = mask[:, 0, -1]
        return mask if mask.dtype == torch.bool else mask >= 0
    return mask > 0 if mask.dtype != torch.bool else mask


def sees_all(config: Any, states: Tensor | None, mask: Any, cache: Any) -> bool:
    """Whether one word enters that sees all that every layer has in the cache, so that no layer needs a mask.

    It asks the device, as transformers does about a mask: without one, that does not.
    """
    if states is None or states.shape[1] > 1 or not prefixes_of(cache):
        return False
    if making_graph() or getattr(cache, "is_compileable", False):
        return False
    if not config._attn_implementation.startswith(("sdpa", "flash")):  # others always have a mask
        return False
    if any(prefix.mask is not None for prefix in prefixes_of(cache).values()):
        return False
    return mask is None or (isinstance(mask, Tensor) and mask.ndim == 2 and bool((mask > 0).all()))


def past_tokens(cache: Any) -> int:
    """How many tokens the first layer has seen before this forward."""
    if cache is not None and making_graph() and getattr(cache, "is_compileable", False):  # which counts on the device
        if prefixes_of(cache):
            raise RuntimeError("only the first prompt can be compiled with a static cache; run later ones eagerly")
        return 0
    return 0 if cache is None else int(cache.get_seq_length())


def newest_keys(key: Tensor, length: int, layer: int, cache: Any) -> Tensor:
    """Of the keys that an attention sees ``(B, Hkv, M, Dh)`` those of the tokens of this forward."""
    if key.shape[2] == length:
        return key
    if not getattr(cache, "is_compileable", False):
        return key[:, :, -length:]
    at = cache.get_seq_length(layer) - length + torch.arange(length, device=key.device)  # the buffer goes on after them
    return key.index_select(2, at)


def is_row(mask: Any) -> bool:
    """Whether a mask is one tensor with a row for one word."""
    return isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[2] == 1


def making_graph() -> bool:
    """Whether a graph is being made, in which nothing can be asked of the device."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing()
