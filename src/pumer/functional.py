"""The method as pure functions on tensors (PuMer, ACL 2023, section 4 and Algorithm 1). Torch only.

Letters: ``B`` batch, ``T`` text tokens, ``V`` image tokens, ``N`` tokens of one stream, ``H`` heads, ``D`` width,
``Dh`` head width. Every function is batched, has static output shapes and treats each sample on its own: real tokens
come first (a *compact* buffer), so a token's rank is its index, and padding never influences a real token.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Attend through the fused kernel; no (N, N) matrix is formed here.

    Args:
        query: ``(B, H, Q, Dh)``.
        key: ``(B, H, N, Dh)``.
        value: ``(B, H, N, Dh)``.
        bias: ``(B, 1, 1, N)``, added to the logits (minus infinity hides a token), or None.
        dropout: Probability with which an attention weight is dropped.

    Returns:
        ``(B, H, Q, Dh)``.
    """
    mask = None if bias is None else bias.to(query.dtype)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def attention_probabilities(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """Attention probabilities of a few query rows, before dropout.

    Args:
        query: ``(B, H, Q, Dh)``; only the rows that are wanted (Q much smaller than N).
        key: ``(B, H, N, Dh)``.
        bias: ``(B, 1, 1, N)`` or None.

    Returns:
        ``(B, H, Q, N)``, at least float32; each row sums to one.
    """
    scaled = query * query.shape[-1] ** -0.5
    # One batch of matrices before transposing: the other way round, the keys would be copied transposed, and slowly.
    logits = torch.bmm(scaled.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)).view(*query.shape[:-1], -1)
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    probabilities: Tensor = logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return probabilities


def text_saliency(text_rows: Tensor, text_mask: Tensor) -> Tensor:
    """How much the text asks about each image token (Eq. 1).

    Args:
        text_rows: ``(B, H, T, V)`` text-to-image attention probabilities.
        text_mask: ``(B, T)`` bool, True for real text tokens.

    Returns:
        ``(B, V)``: probabilities summed over heads and averaged over the real text tokens.

    Differs from the paper: padded rows are left out (the released code sums them too).
    """
    weight = text_mask.to(text_rows.dtype)
    summed = (text_rows.sum(dim=1) * weight[:, :, None]).sum(dim=1)
    return summed / weight.sum(dim=1, keepdim=True).clamp(min=1)


def tabulate(rule: Callable[[int], int], lengths: Tensor, largest: int) -> tuple[Tensor, int]:
    """Apply an integer rule to each sample's own length, through a table instead of rounding floats.

    Args:
        rule: From a token count to a token count (Python arithmetic, Python rounding); hashable, and always the same
            function for the same hash: a method of a frozen dataclass, not a lambda.
        lengths: ``(B,)`` int64 token counts.
        largest: The largest length that can occur (static).

    Returns:
        ``rule(length)`` of each sample, ``(B,)`` int64, and the largest value in the table: the static buffer size.
        The rules are not monotone for all ratios, so that is not always ``rule(largest)``.
    """
    # A compiled graph holds the table as a constant; dynamo would warn about the cache around it.
    table = (_table.__wrapped__ if torch.compiler.is_compiling() else _table)(rule, largest)
    return torch.tensor(table, dtype=torch.int64, device=lengths.device)[lengths], max(table)


@lru_cache(maxsize=4096)
def _table(rule: Callable[[int], int], largest: int) -> list[int]:
    return [rule(n) for n in range(largest + 1)]


def compact(keep: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Indices of the chosen tokens, in order, at the front of a buffer of fixed length.

    Args:
        keep: ``(B, N)`` bool, at most ``length`` True per row.
        length: Number of slots of the result.

    Returns:
        ``index (B, length)`` int64, valid everywhere; ``valid (B, length)`` bool, False for free slots.
    """
    order = (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, :length]
    slots = torch.arange(length, device=keep.device)
    return order, slots < keep.sum(dim=1, keepdim=True)


def highest(score: Tensor, count: Tensor) -> Tensor:
    """Flag the tokens with the highest scores; ties go to the lower rank.

    Args:
        score: ``(B, N)``.
        count: ``(B,)`` int64, how many to flag.

    Returns:
        ``(B, N)`` bool.
    """
    order = score.argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1) < count[:, None]


def prune(saliency: Tensor, mask: Tensor, count: Tensor) -> Tensor:
    """Text-informed pruning: flag the most salient tokens (Algorithm 1, lines 1 to 3).

    Args:
        saliency: ``(B, V)``.
        mask: ``(B, V)`` bool, real tokens; rank 0 is [CLS] and always stays.
        count: ``(B,)`` int64, tokens to keep, [CLS] counted.

    Returns:
        ``(B, V)`` bool, True for the tokens that stay; never a padded one.
    """
    is_first = torch.arange(mask.shape[1], device=mask.device) == 0
    score = saliency.masked_fill(~mask, -torch.inf).masked_fill(is_first & mask, torch.inf)
    return highest(score, count) & mask


def match(features: Tensor, mask: Tensor, count: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bipartite soft matching within one modality (Algorithm 1, lines 5 to 9).

    Tokens of even rank propose, tokens of odd rank receive. Each proposer looks for its most similar receiver
    (cosine); the ``count`` best pairs are merged. Rank 0, [CLS], never proposes and, being even, never receives.

    Args:
        features: ``(B, N, Dh)``, what similarity is measured on (the attention keys, averaged over heads).
        mask: ``(B, N)`` bool, real tokens, compact.
        count: ``(B,)`` int64, pairs to merge.
        most: The largest possible count: the static length of the result.

    Returns:
        ``source (B, most)``, ``target (B, most)`` int64 ranks; ``valid (B, most)`` bool, True for real pairs.
    """
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    features = normalize(features, dim=-1)
    similarity = features[:, 0::2] @ features[:, 1::2].transpose(1, 2)
    similarity = similarity.masked_fill(~mask[:, None, 1::2], -torch.inf)
    best, receiver = similarity.max(dim=-1)
    proposes = mask[:, 0::2] & (torch.arange(best.shape[1], device=mask.device) > 0)
    order = best.masked_fill(~proposes, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :most]
    valid = torch.arange(most, device=mask.device) < count[:, None]
    return order * 2, receiver.gather(1, order) * 2 + 1, valid


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Pick tokens of each sample by index.

    Args:
        x: ``(B, N)`` or ``(B, N, D)``.
        index: ``(B, K)`` int64.

    Returns:
        ``(B, K)`` or ``(B, K, D)``.
    """
    if x.ndim == 2:
        return x.gather(1, index)
    batch, tokens = x.shape[:2]
    offset = torch.arange(batch, device=x.device)[:, None] * tokens
    return x.flatten(0, 1).index_select(0, (index + offset).flatten()).view(batch, index.shape[1], -1)
