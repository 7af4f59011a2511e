"""From scores and keys to a decision: the steps that reduction methods share. Shapes are static, samples independent.

Letters as in `pumer.tokens`; ``W`` is the longer of T and V, rounded up to an even number.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from pumer import kernels
from pumer.functional import after_merging, asked_for, gather_tokens, kept_first, ordered, propose, unit
from pumer.reducers.cues import Cues
from pumer.reducers.tables import Rule, Tables, integers, ranks, tables
from pumer.tokens import GONE, Decision


def keep_all(cues: Cues) -> Decision:
    """The decision that changes nothing."""
    tokens, segments = cues.tokens, cues.tokens.segments
    if segments is None:
        return Decision(None, tokens.lengths, tokens.slots)
    found = tables(Rule(), *tokens.slots, tokens.size.device)
    rank = ranks(sum(tokens.slots), tokens.size.device)
    return segments.place(Decision(torch.where(segments.mask, 2 * rank, GONE), tokens.lengths, tokens.slots), found)


def prune_and_merge(cues: Cues, rule: Rule) -> Decision:
    """Prune the image tokens that the text asks for least, then merge similar ones, text with text (Algorithm 1).

    Args:
        cues: With what the rule asks for: queries and keys to prune, keys to merge.
        rule: How many.
    """
    found = tables_of(cues, rule)
    if not (found.prunes or found.merges_text or found.merges_image):
        return keep_all(cues)
    assert cues.key is not None  # for the type checker: it is in `needs`
    if cues.tokens.segments is None and kernels.usable(cues.key):
        return _fused(cues, found)
    return assign(cues, found)


def prune_to(cues: Cues, rule: Rule, score: Tensor) -> Decision:
    """Keep the image tokens with the highest scores, and what is protected; text stays.

    Args:
        cues: Of these only the tokens are looked at.
        rule: How many.
        score: ``(B, V)``; ties go to the lower rank.
    """
    return assign(cues, tables_of(cues, rule), score.masked_fill(~cues.image_mask, -torch.inf))


def merge_as_one(cues: Cues, rule: Rule) -> Decision:
    """Merge similar tokens of a stream without regard to modality; afterwards all count as image.

    Args:
        cues: With the keys of the whole stream.
        rule: How many, by its image counts.
    """
    tokens, (T, V) = cues.tokens, cues.tokens.slots
    found = tables(rule, 0, T + V, tokens.size.device)
    if T == 0 and not found.merges_image:
        return keep_all(cues)
    assert cues.key is not None  # for the type checker: it is in `needs`
    if kernels.usable(cues.key):
        return _fused(cues, found, whole=True)
    index = None
    if T:  # no gap between text and image: a rank is a rank; the first text token stands first
        index = ordered(~tokens.mask)
    count = counts(found, tokens.lengths.sum(dim=1, keepdim=True) * ranks(2, tokens.size.device))
    beyond = found.limits >= count[..., None]
    code = _by_rank(found, beyond, lambda: unit(cues.key.mean(dim=1)), index)  # type: ignore[union-attr]
    return Decision(_by_token(found, code, index), count[:, :, 2], (0, found.image_left))


def assign(cues: Cues, found: Tables, score: Tensor | None = None) -> Decision:
    """The decision that follows from scores and keys, in plain torch: the reference for the fused kernels.

    Args:
        cues: With what the rule asks for.
        found: How many of each length.
        score: ``(B, V)`` by which image tokens are pruned, zero or lowest for padding; None: by what the text asks for.
    """
    tokens, index, guard = cues.tokens, None, None
    segments, count = tokens.segments, counts(found, tokens.lengths)
    if segments is not None and segments.guarded != (0, 0):  # at least what is protected is kept
        guard = segments.guard
        held = [part.sum(dim=1) for part in guard.split(list(tokens.slots), dim=1)]
        count = torch.maximum(count, integers(count.device, 1, 0, 0, 1) * torch.stack(held, dim=1)[:, :, None])
    if found.prunes:
        if score is None:
            if segments is None:
                rows, asking = cues.text_attention(), tokens.size[:, : found.text].sign()
            else:
                rows, asking = cues.asking_rows()
            score = asked_for(rows, asking.to(rows.dtype))
        if guard is not None:
            score = pad(score.masked_fill(~cues.image_mask, -torch.inf), (found.text, 0))
            score = score.masked_fill(guard | (found.place < 0), torch.inf)
        elif segments is not None:
            score = pad(score.masked_fill(~cues.image_mask, -torch.inf), (found.text, 0), value=torch.inf)
        elif score.shape[1] == len(found.fixed):
            score = score.masked_fill(found.fixed, torch.inf)
        else:  # as many as text tokens, which nobody scored, and [CLS] stand before the patches of a stream
            score = pad(score[:, 1:], (found.text + 1, 0), value=torch.inf)
        index = kept_first(score, found.place >= count[:, 1, :1])
    beyond = (found.limits if segments is None else found.rank) >= count[..., None]
    if guard is not None:
        count, beyond = _guarded(found, count, guard if index is None else guard.gather(1, index))
    code = _by_rank(found, beyond, lambda: _features(cues, found), index)
    stays = not found.merges_text, not (found.prunes or found.merges_image)
    slots = found.text_left, found.image_left
    decision = Decision(_by_token(found, code, index), count[:, :, 2], slots, stays=stays)
    return decision if segments is None else segments.place(decision, found)


def _guarded(found: Tables, count: Tensor, guard: Tensor) -> tuple[Tensor, Tensor]:
    """Counts, and what `Tables.limits` is beyond, where tokens of the ranks ``guard (B, T + V)`` take no part."""
    W, kept = len(found.rank), count[..., 0]
    held = guard.new_zeros(guard.shape[0], 2 * W).index_copy(1, found.flat, guard).view(-1, 2, W)
    outside = found.rank >= kept[..., None]
    unable = outside | held
    proposing, receiving = (~unable).unflatten(2, (-1, 2)).sum(dim=2).unbind(dim=2)
    merged = torch.minimum(count[..., 1], proposing) * (receiving > 0)
    beyond = [outside, found.rank >= merged[..., None], outside, unable]
    return torch.stack([kept, merged, kept - merged, kept], dim=2), torch.stack(beyond, dim=2)


def text_stays(cues: Cues, found: Tables, code: Tensor, left: Tensor, counted: bool = True) -> Decision:
    """A decision about the image, beside text that stays as it is.

    Args:
        cues: Of these only the tokens are looked at.
        found: How many.
        code: ``(B, V)``, see `Decision`.
        left: ``(B,)`` image tokens afterwards.
        counted: Whether each sample's counts are those of ``found``, which otherwise has only the most of them.
    """
    tokens, length = cues.tokens, cues.tokens.lengths[:, 0]
    text = torch.where(found.rank[: found.text] < length[:, None], found.code[0, : found.text], GONE)
    lengths, slots = torch.stack([length, left], dim=1), (found.text_left, found.image_left)
    decision = Decision(torch.cat([text, code], dim=1), lengths, slots, stays=(True, False))
    return decision if tokens.segments is None else tokens.segments.place(decision, found, counted)


def protected(cues: Cues, found: Tables) -> Tensor:
    """Which image tokens are neither pruned nor merged: ``(V,)`` or ``(B, V)`` bool."""
    segments = cues.tokens.segments
    return found.fixed[found.text :] if segments is None else segments.guard[:, found.text :]


def counts(found: Tables, lengths: Tensor) -> Tensor:
    """Rows of `Tables.counts` for text and image, by each sample's own lengths: ``(B, 2)`` to ``(B, 2, 4)`` int64."""
    return torch.embedding(found.counts, lengths + found.offset)


def _features(cues: Cues, found: Tables) -> Tensor:
    """Keys averaged over heads, of length one: ``(B, N, Dh)``, or those of the block alone in which tokens merge."""
    if not found.merges_text:
        return unit(cues.image_key.mean(dim=1))
    if not found.merges_image:
        return unit(cues.text_key.mean(dim=1))
    if cues.one_stream and cues.tokens.segments is None:
        assert cues.key is not None  # for the type checker: it is in `needs`
        return unit(cues.key.mean(dim=1))
    return unit(torch.cat([cues.text_key, cues.image_key], dim=2).mean(dim=1))


def _by_rank(found: Tables, beyond: Tensor, features: Callable[[], Tensor], index: Tensor | None) -> Tensor:
    """The codes ``(B, 2, W)`` of text and image by rank after pruning; both are merged as rows of one batch.

    ``beyond (B, 2, 4, W)`` says which ranks are beyond the counts, see `Tables.limits`; ``index (B, T + V)`` which
    token has which rank, text first (None: each its own).
    """
    W = len(found.rank)
    outside, gone, _, unable = beyond.unbind(dim=2)
    if not (found.merges_text or found.merges_image):
        return torch.where(outside, GONE, found.code)
    blocks = slice(0 if found.merges_text else 1, 2 if found.merges_image else 1)
    hidden, spared = unable[:, blocks].flatten(0, 1), gone[:, blocks, : W // 2].flatten(0, 1)
    stays, receiver = propose(_ordered(found, features(), index).view(hidden.shape[0], W, -1), hidden, spared)
    shape = -1, blocks.stop - blocks.start, W // 2
    code = after_merging(found.least[blocks], stays.view(shape), receiver.view(shape))
    if found.merges_text != found.merges_image:
        other = found.code[1:] if found.merges_text else found.code[:1]
        pair = [code, other.expand(code.shape[0], 1, W)]
        code = torch.cat(pair if found.merges_text else pair[::-1], dim=1)
    return code.masked_fill(outside, GONE)


def _ordered(found: Tables, features: Tensor, index: Tensor | None) -> Tensor:
    """Features of the tokens at each rank, a row of W for each block that merges: ``(B, rows * W, Dh)``."""
    if index is None or not found.merges_image:
        return features.index_select(1, found.at)
    if found.text and not found.merges_text:  # there are features of the image alone
        index = (index[:, found.text :] - found.text).clamp_(min=0)  # below 0 where NaN scores come before the text
    at = index.index_select(1, found.at)
    if at.shape[0] == 1:
        return gather_tokens(features, at)
    return features.gather(1, at[:, :, None].expand(-1, -1, features.shape[2]))


def _by_token(found: Tables, code: Tensor, index: Tensor | None) -> Tensor:
    """From codes by rank ``(B, 2, W)`` to codes by input slot ``(B, T + V)``."""
    code = code.flatten(1).index_select(1, found.flat)
    return code if index is None else torch.empty_like(code).scatter_(1, index, code)


def tables_of(cues: Cues, rule: Rule) -> Tables:
    """The tables of a rule for these tokens."""
    tokens = cues.tokens
    guarded = (0, 0) if tokens.segments is None else tokens.segments.guarded
    return tables(rule, *tokens.slots, tokens.size.device, guarded)


def _fused(cues: Cues, found: Tables, whole: bool = False) -> Decision:
    """The same decision by the fused kernels."""
    assert cues.key is not None
    T, V = cues.tokens.slots
    code, lengths = kernels.decide(
        cues.text_query if found.prunes else None,
        cues.key,
        cues.text_key if found.merges_text else None,
        cues.bias,
        cues.tokens.lengths,
        found.counts_int32[1:] if whole else found.counts_int32,
        T,
        V,
        found.text_left,
        found.image_left,
        found.prunes,
        found.merges_text,
        found.merges_image,
        whole,
    )
    return Decision(code, lengths, (found.text_left, found.image_left))
