"""From scores to decisions: the steps that reduction methods share. Shapes are static, samples independent."""

from collections.abc import Callable

import torch
from torch import Tensor

from pumer.functional import compact, gather_tokens, match, prune, tabulate
from pumer.tokens import Block, Decision

Kept = tuple[Tensor, Tensor]
"""``index (B, K)`` int64 and ``valid (B, K)`` bool of the tokens that stay, in order."""


def everything(mask: Tensor) -> Kept:
    """All tokens of ``mask (B, n)``."""
    return torch.arange(mask.shape[1], device=mask.device).expand(mask.shape), mask


def keep(score: Tensor, mask: Tensor, rule: Callable[[int], int]) -> Kept:
    """The tokens with the highest scores; rank 0, [CLS], is always one of them.

    Args:
        score: ``(B, n)``.
        mask: ``(B, n)`` bool, real tokens, compact.
        rule: From a sample's number of tokens to how many stay; see `functional.tabulate`.
    """
    count, length = tabulate(rule, mask.sum(dim=1), mask.shape[1])
    return compact(prune(score, mask, count), length)


def only(kept: Kept, slots: int) -> Decision:
    """What is not kept of ``slots`` tokens is pruned, nothing is merged."""
    index, valid = kept
    nothing = index[:, :0]
    return Decision.build(index, valid, nothing, nothing, valid[:, :0], slots)


def merge(block: Block, kept: Kept, merges: Callable[[int], int], left: Callable[[int], int]) -> Decision:
    """Merge the most similar of the tokens that are kept, by their keys (Algorithm 1, lines 5 to 9).

    Args:
        block: ``(B, n)`` tokens; without keys nothing is merged.
        kept: What pruning leaves of it.
        merges: From the block's real length to the number of merges.
        left: From the block's real length to the number of tokens after merging.
    """
    index, valid = kept
    lengths, slots = block.mask.sum(dim=1), block.mask.shape[1]
    count, most = tabulate(merges, lengths, slots)
    if most == 0 or block.keys is None:
        return only(kept, slots)
    source, target, happens = match(gather_tokens(block.keys.mean(dim=1), index), valid, count, most)
    return join_pairs(kept, (source, target, happens), left, lengths, slots)


def join_pairs(
    kept: Kept, pairs: tuple[Tensor, Tensor, Tensor], left: Callable[[int], int], lengths: Tensor, slots: int
) -> Decision:
    """The decision that follows from pairs of tokens to merge.

    Args:
        kept: What is not pruned.
        pairs: ``source (B, M)``, ``target (B, M)``, positions in ``kept``, and ``happens (B, M)`` bool.
        left: From a sample's number of tokens to the number after merging.
        lengths: ``(B,)`` int64, real tokens of each sample.
        slots: ``n``, tokens before the reduction.
    """
    index, valid = kept
    source, target, happens = pairs
    merged = torch.zeros_like(index).scatter(1, source, happens.to(index.dtype)) > 0
    _, length = tabulate(left, lengths, slots)
    stays, mask = compact(valid & ~merged, length)
    return Decision.build(
        index.gather(1, stays), mask, index.gather(1, source), index.gather(1, target), happens, slots
    )
