"""The method as pure functions on tensors (PuMer, ACL 2023, section 4 and Algorithm 1). Torch only.

Letters: ``B`` batch, ``T`` text tokens, ``V`` image tokens, ``N`` tokens of one stream, ``H`` heads, ``D`` width,
``Dh`` head width. Every function is batched, has static output shapes and treats each sample on its own: real tokens
come first (a *compact* buffer), so a token's rank is its index, and padding never influences a real token.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

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
        key: ``(B, H, N, Dh)``, or fewer heads, each for as many heads of the queries that follow one another.
        bias: ``(B, 1, 1 or Q, N)`` or None.

    Returns:
        ``(B, H, Q, N)``, at least float32; each row sums to one.
    """
    if query.dtype in HALF:
        query, key = query.float(), key.float()
    # One batch of matrices before transposing: the other way round, the keys would be copied transposed, and slowly.
    shared = query.shape[2] * (query.shape[1] // key.shape[1])
    rows = query.reshape(query.shape[0] * key.shape[1], shared, query.shape[3])
    logits = torch.bmm(rows, key.flatten(0, 1).transpose(1, 2)).view(*query.shape[:-1], key.shape[2])
    scale = query.shape[-1] ** -0.5
    logits = logits * scale if bias is None else torch.add(bias.to(logits.dtype), logits, alpha=scale)
    return logits.softmax(dim=-1)


def ordered(score: Tensor, descending: bool = False) -> Tensor:
    """Indices ``(B, n)`` int64 that sort ``score (B, n)``; ties go to the lower index, booleans count as numbers.

    It is a permutation whatever the scores are: NaN counts as infinite.
    """
    if torch.compiler.is_exporting():
        return _ordered_by_counting(score, descending)
    if score.dtype == torch.bool:
        score = score.to(torch.uint8)
    return torch.sort(score, dim=1, descending=descending, stable=True)[1]


def _ordered_by_counting(score: Tensor, descending: bool) -> Tensor:
    """The same without a stable sort, which ONNX has not, and whose order no runtime keeps; forms ``(B, n, n)``."""
    index = torch.arange(score.shape[1], device=score.device)
    if score.dtype == torch.bool:
        return torch.sort(torch.add(index, score ^ descending, alpha=score.shape[1]), dim=1)[1]
    score = score.masked_fill(score.isnan(), torch.inf)  # else it would be before nothing, and two would share a rank
    mine, other = score[:, :, None], score[:, None]
    first = (other > mine) if descending else (other < mine)
    before = first | ((other == mine) & (index < index[:, None]))
    return torch.zeros_like(score, dtype=torch.int64).scatter(1, before.sum(dim=2), index.expand(score.shape))


def asked_for(text_rows: Tensor, words: Tensor) -> Tensor:
    """`text_saliency` without its division by the number of words, which no order of tokens depends on.

    Args:
        text_rows: ``(B, H, T, V)`` text-to-image attention probabilities.
        words: ``(B, T)`` of the same dtype, 1 for real text tokens and 0 for the others.

    Returns:
        ``(B, V)``.
    """
    return torch.bmm(words[:, None], text_rows.sum(dim=1))[:, 0]


def text_saliency(text_rows: Tensor, text_mask: Tensor) -> Tensor:
    """How much the text asks about each image token (Eq. 1).

    Args:
        text_rows: ``(B, H, T, V)`` text-to-image attention probabilities.
        text_mask: ``(B, T)`` bool, True for real text tokens.

    Returns:
        ``(B, V)``: probabilities summed over heads and averaged over the real text tokens.

    Differs from the paper: padded rows are left out (the released code sums them too).
    """
    words = text_mask.to(text_rows.dtype)
    return asked_for(text_rows, words) / words.sum(dim=1, keepdim=True).clamp(min=1)


def compact(keep: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Indices of the chosen tokens, in order, at the front of a buffer of fixed length.

    Args:
        keep: ``(B, N)`` bool, at most ``length`` True per row.
        length: Number of slots of the result.

    Returns:
        ``index (B, length)`` int64, valid everywhere; ``valid (B, length)`` bool, False for free slots.
    """
    order = ordered(~keep)[:, :length]
    slots = torch.arange(length, device=keep.device)
    return order, slots < keep.sum(dim=1, keepdim=True)


def kept_first(score: Tensor, dropped: Tensor) -> Tensor:
    """Text-informed pruning: the tokens with the highest scores, in their order, and then the others.

    Args:
        score: ``(B, n)``; zero or lowest for padding, infinite for what must stay in front.
        dropped: ``(B, n)`` bool, True from the number of tokens to keep on.

    Returns:
        ``(B, n)`` int64, a permutation: the token at each rank after pruning. Ties go to the lower rank.
    """
    n = score.shape[1]
    moved = torch.add(ordered(score, descending=True), dropped, alpha=n)
    return moved.sort(dim=1)[0].remainder_(n)


def propose(features: Tensor, outside: Tensor, spared: Tensor) -> tuple[Tensor, Tensor]:
    """Bipartite soft matching among the tokens of one modality in rank order (Algorithm 1, lines 5 to 9).

    Tokens of even rank propose, tokens of odd rank receive. Each proposer looks for its most similar receiver (cosine);
    the best pairs are merged. Rank 0, [CLS], never receives, being even.

    Args:
        features: ``(B, W, Dh)``, W even: what similarity is measured on (the attention keys, averaged over heads), of
            length one.
        outside: ``(B, W)`` bool, True from the number of tokens on, and at rank 0, which therefore never proposes.
        spared: ``(B, W / 2)`` bool, True from the number of pairs to merge on.

    Returns:
        ``stays (B, W / 2)`` bool, False for the proposers that are merged away, and ``receiver (B, W / 2)`` int64, each
        one's best: i stands for rank ``2 i`` of the former and ``2 i + 1`` of the latter. Ties go to the lower rank.
    """
    half = spared.shape[1]
    even, odd = features.view(-1, half, 2, features.shape[2]).unbind(dim=2)
    outside_even, outside_odd = outside.view(-1, half, 2).unbind(dim=2)
    similarity = torch.bmm(even, odd.transpose(1, 2)).masked_fill_(outside_odd[:, None], -torch.inf)
    best, receiver = similarity.max(dim=2)
    order = ordered(best.masked_fill(outside_even, -torch.inf), descending=True)
    return torch.empty_like(spared).scatter_(1, order, spared), receiver


def after_merging(slot: Tensor, stays: Tensor, receiver: Tensor) -> Tensor:
    """Where tokens go once pairs are merged: the others move up, a merged token goes into its receiver.

    Args:
        slot: ``(..., W / 2, 3)`` int64, codes if every proposer so far were merged (see `Tables.least`).
        stays: ``(..., W / 2)``, as from `propose`.
        receiver: ``(..., W / 2)``, as from `propose`.

    Returns:
        ``(..., W)`` int64, the code of each rank (see `Decision`).
    """
    even, odd, into = torch.add(slot, stays.cumsum(dim=-1)[..., None], alpha=2).unbind(dim=-1)
    return torch.stack([torch.where(stays, even, into.gather(-1, receiver)), odd], dim=-1).flatten(-2)


def unit(features: Tensor) -> Tensor:
    """Features ``(..., Dh)`` of length one, at least float32."""
    if features.dtype in HALF:
        features = features.float()
    length: Tensor = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return features / length.clamp_min(1e-12)


def evenly_spaced(mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """At most so many real tokens, evenly spaced over those of a sample, whatever the padding around them.

    Args:
        mask: ``(B, N)`` bool, real tokens.
        most: ``S``; ``N`` where that is less.

    Returns:
        ``(B, S)`` int64, where they stand; ``(B, S)`` bool, False where a sample has no more tokens.
    """
    real, rank = mask.sum(dim=1, keepdim=True), torch.arange(min(most, mask.shape[1]), device=mask.device)
    taken = real.clamp(max=most)
    return ordered(~mask).gather(1, rank * real // taken.clamp(min=1)), rank < taken


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Pick tokens of each sample by index.

    Args:
        x: ``(B, N)``, ``(B, N, D)`` or ``(B, H, N, Dh)``.
        index: ``(B, K)`` int64.

    Returns:
        ``(B, K)``, ``(B, K, D)`` or ``(B, H, K, Dh)``.
    """
    if x.ndim == 2:
        return x.gather(1, index)
    if x.ndim == 4:
        return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
    batch, tokens = x.shape[:2]
    if batch == 1:
        return torch.embedding(x[0], index)
    offset = torch.arange(batch, device=x.device)[:, None] * tokens
    return x.flatten(0, 1).index_select(0, (index + offset).flatten()).view(batch, index.shape[1], x.shape[2])
