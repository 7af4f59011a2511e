"""The method as pure functions on tensors (PuMer, ACL 2023, section 4 and Algorithm 1). Torch only.

Letters: ``B`` batch, ``T`` text tokens, ``V`` image tokens, ``N`` tokens of one stream, ``H`` heads, ``D`` width,
``Dh`` head width. Every function is batched, has static output shapes and treats each sample on its own: real tokens
come first (a *compact* buffer), so a token's rank is its index, and padding never influences a real token.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention

HALF = (torch.float16, torch.bfloat16)


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
    if query.dtype in HALF:
        query, key = query.float(), key.float()
    # One batch of matrices before transposing: the other way round, the keys would be copied transposed, and slowly.
    logits = torch.bmm(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)).view(*query.shape[:-1], -1)
    scale = query.shape[-1] ** -0.5
    logits = logits * scale if bias is None else torch.add(bias.to(logits.dtype), logits, alpha=scale)
    return logits.softmax(dim=-1)


def asked_for(text_rows: Tensor, padded: Tensor) -> Tensor:
    """`text_saliency` without its division by the number of words, which no order of tokens depends on.

    Args:
        text_rows: ``(B, H, T, V)`` text-to-image attention probabilities; overwritten.
        padded: ``(B, T)`` bool, True for text slots without a token.

    Returns:
        ``(B, V)``.
    """
    return text_rows.masked_fill_(padded[:, None, :, None], 0).sum(dim=(1, 2))


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


def kept_first(score: Tensor, dropped: Tensor) -> Tensor:
    """Text-informed pruning: the tokens with the highest scores, in their order, and then the others.

    Args:
        score: ``(B, n)``, of the tokens that can be pruned; zero or lowest for padding.
        dropped: ``(B, n)`` bool, True from the number of tokens to keep on.

    Returns:
        ``(B, n)`` int64, a permutation: the token at each rank after pruning. Ties go to the lower rank.
    """
    order = score.argsort(dim=1, descending=True, stable=True)
    gone = torch.empty_like(dropped).scatter_(1, order, dropped)
    return gone.to(torch.uint8).argsort(dim=1, stable=True)


def propose(features: Tensor, outside: Tensor, spared: Tensor) -> tuple[Tensor, Tensor]:
    """Bipartite soft matching among the tokens of one modality in rank order (Algorithm 1, lines 5 to 9).

    Tokens of even rank propose, tokens of odd rank receive. Each proposer looks for its most similar receiver (cosine);
    the best pairs are merged. Rank 0, [CLS], never proposes and, being even, never receives.

    Args:
        features: ``(B, W, Dh)``, W even: what similarity is measured on (the attention keys, averaged over heads), of
            length one.
        outside: ``(B, W)`` bool, True from the number of tokens on.
        spared: ``(B, W / 2)`` bool, True from the number of pairs to merge on.

    Returns:
        ``stays (B, W / 2)`` bool, False for the proposers that are merged away, and ``receiver (B, W / 2)`` int64, each
        one's best: i stands for rank ``2 i`` of the former and ``2 i + 1`` of the latter. Ties go to the lower rank.
    """
    similarity = torch.bmm(features[:, 0::2], features[:, 1::2].transpose(1, 2))
    best, receiver = similarity.masked_fill_(outside[:, None, 1::2], -torch.inf).max(dim=-1)
    best = best.masked_fill(outside[:, 0::2], -torch.inf)
    best[:, 0].fill_(-torch.inf)
    order = best.argsort(dim=1, descending=True, stable=True)
    return torch.empty_like(spared).scatter_(1, order, spared), receiver


def after_merging(slot: Tensor, stays: Tensor, receiver: Tensor) -> Tensor:
    """Where tokens go once pairs are merged: the others move up, a merged token goes into its receiver.

    Args:
        slot: ``(..., W)`` int64, twice the slot of each rank if every proposer so far were merged (see `Tables`).
        stays: ``(..., W / 2)``, as from `propose`.
        receiver: ``(..., W / 2)``, as from `propose`.

    Returns:
        ``(..., W)`` int64, the code of each rank (see `Decision`).
    """
    pairs = slot.view(*slot.shape[:-1], -1, 2)
    even, odd = torch.add(pairs, stays.cumsum(dim=-1)[..., None], alpha=2).unbind(dim=-1)
    into = odd.gather(-1, receiver) + 1
    return torch.stack([torch.where(stays, even, into), odd], dim=-1).flatten(-2)


def unit(features: Tensor) -> Tensor:
    """Features ``(..., Dh)`` of length one, at least float32."""
    return normalize(features.float() if features.dtype in HALF else features, dim=-1)


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
