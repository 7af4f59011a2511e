"""From scores and keys to a decision: the steps that reduction methods share. Shapes are static, samples independent.

Letters as in `pumer.tokens`; ``W`` is the longer of T and V, rounded up to an even number.
"""

import torch
from torch import Tensor

from pumer import kernels
from pumer.functional import after_merging, asked_for, kept_first, propose, unit
from pumer.tables import Rule, Tables, ranks, tables
from pumer.tokens import GONE, Cues, Decision


def keep_all(cues: Cues) -> Decision:
    """The decision that changes nothing."""
    return Decision(None, cues.tokens.lengths, cues.tokens.slots)


def prune_and_merge(cues: Cues, rule: Rule) -> Decision:
    """Prune the image tokens that the text asks for least, then merge similar ones, words with words (Algorithm 1).

    Args:
        cues: With what the rule asks for: queries and keys to prune, keys to merge.
        rule: How many.
    """
    found = _tables(cues, rule)
    if not (found.prunes or found.merges_text or found.merges_image):
        return keep_all(cues)
    assert cues.key is not None  # for the type checker: it is in `needs`
    if kernels.usable(cues.key):
        return _fused(cues, found)
    score = None
    if found.prunes:
        score = asked_for(cues.text_rows(), ~cues.text_mask)
    return assign(cues, found, score)


def prune_to(cues: Cues, rule: Rule, score: Tensor) -> Decision:
    """Keep the image tokens with the highest scores; [CLS] is always one of them; text stays.

    Args:
        cues: Of these only the tokens are looked at.
        rule: How many.
        score: ``(B, V)``; ties go to the lower rank.
    """
    return assign(cues, _tables(cues, rule), score.masked_fill(~cues.image_mask, -torch.inf))


def merge_as_one(cues: Cues, rule: Rule) -> Decision:
    """Merge similar tokens of a stream without regard to modality; afterwards all count as image.

    Args:
        cues: With the keys of the whole stream.
        rule: How many, by its image counts.
    """
    T, V = cues.tokens.slots
    found = tables(rule, 0, T + V, cues.tokens.size.device)
    if T == 0 and not found.merges_image:
        return keep_all(cues)
    assert cues.key is not None  # for the type checker: it is in `needs`
    if kernels.usable(cues.key):
        return _fused(cues, found, whole=True)
    index = None
    if T:  # no gap between words and patches: a rank is a rank
        index = (~cues.tokens.mask).to(torch.uint8).argsort(dim=1, stable=True)
    length = cues.tokens.lengths.sum(dim=1, keepdim=True) * ranks(2, cues.tokens.size.device)
    count = counts(found, length)
    outside, code = _ranked(found, count)
    if found.merges_image:
        code = _merged(found, unit(cues.key.mean(dim=1)), code, outside, count[:, :, 1], index)
    code = code[:, 1, : T + V]
    if index is not None:
        code = torch.empty_like(code).scatter_(1, index, code)
    return Decision(code, count[:, :, 2], (0, found.image_left))


def assign(cues: Cues, found: Tables, score: Tensor | None) -> Decision:
    """The decision that follows from scores and keys, in plain torch: the reference for the fused kernels.

    Args:
        cues: With the keys, if something is merged.
        found: How many of each length.
        score: ``(B, V)`` by which image tokens are pruned, zero or lowest for padding; None: none is.
    """
    T, V = found.text, found.image
    count = counts(found, cues.tokens.lengths)
    outside, code = _ranked(found, count)
    index = None
    if score is not None and found.prunes:
        index = kept_first(score, outside[:, 1, :V])
    if found.merges_text or found.merges_image:
        code = _merged(found, _features(cues, found), code, outside, count[:, :, 1], index)
    text, image = code[:, 0, :T], code[:, 1, :V]
    if index is not None:
        image = torch.empty_like(image).scatter_(1, index, image)
    return Decision(torch.cat([text, image], dim=1), count[:, :, 2], (found.text_left, found.image_left))


def words_stay(cues: Cues, found: Tables, code: Tensor, left: Tensor) -> Decision:
    """A decision about the image, beside text that stays as it is.

    Args:
        cues: Of these only the tokens are looked at.
        found: How many.
        code: ``(B, V)``, see `Decision`.
        left: ``(B,)`` image tokens afterwards.
    """
    words = cues.tokens.lengths[:, 0]
    text = torch.where(found.rank[: found.text] < words[:, None], found.code[0, : found.text], GONE)
    return Decision(
        torch.cat([text, code], dim=1), torch.stack([words, left], dim=1), (found.text_left, found.image_left)
    )


def counts(found: Tables, lengths: Tensor) -> Tensor:
    """Kept, merged away and left of text and image, by each sample's own lengths: ``(B, 2)`` to ``(B, 2, 3)`` int64."""
    return found.counts.index_select(0, (lengths + found.offset).flatten()).view(-1, 2, 3)


def _ranked(found: Tables, count: Tensor) -> tuple[Tensor, Tensor]:
    """Of every rank after pruning: whether it is beyond the last token, and its code if nothing is merged; ``(B, 2, W)``."""
    outside = found.rank >= count[:, :, :1]
    return outside, torch.where(outside, GONE, found.code)


def _features(cues: Cues, found: Tables) -> Tensor:
    """Keys averaged over heads, of length one: ``(B, N, Dh)``, or those of the block alone in which tokens merge."""
    image = cues.image_key
    if not found.merges_text:
        return unit(image.mean(dim=1))
    assert cues.text_key is not None  # for the type checker: it is in `needs`
    if not found.merges_image:
        return unit(cues.text_key.mean(dim=1))
    if cues.one_stream and cues.key is not None:
        return unit(cues.key.mean(dim=1))
    return unit(torch.cat([cues.text_key.mean(dim=1), image.mean(dim=1)], dim=1))


def _merged(
    found: Tables, features: Tensor, code: Tensor, outside: Tensor, merges: Tensor, index: Tensor | None
) -> Tensor:
    """The codes ``(B, 2, W)`` by rank once text and image are merged, both as rows of one batch.

    Args:
        found: Says which of the blocks merge.
        features: As from `_features`.
        code: ``(B, 2, W)``.
        outside: ``(B, 2, W)``.
        merges: ``(B, 2)``, how many.
        index: ``(B, V)``, image token at each rank, or None: they are all there.
    """
    W, blocks = len(found.rank), slice(0 if found.merges_text else 1, 2 if found.merges_image else 1)
    chosen = code[:, blocks]
    rows = chosen.shape[1]
    happens = found.rank[: W // 2] < merges[:, blocks, None]
    features = _by_rank(found, features, index)
    merged, receiver = propose(
        features.view(-1, W, features.shape[-1]), outside[:, blocks].reshape(-1, W), happens.view(-1, W // 2)
    )
    chosen = after_merging(chosen.reshape(-1, W), merged, receiver).view(-1, rows, W)
    return chosen if rows == 2 else torch.cat([code[:, :1], chosen] if found.merges_image else [chosen, code[:, 1:]], 1)


def _by_rank(found: Tables, features: Tensor, index: Tensor | None) -> Tensor:
    """Features of the tokens at each rank, a row of W for each block that merges: ``(B, rows * W, Dh)``."""
    if index is None or not found.merges_image:
        return features.index_select(1, found.at)
    (B, _, width), W, V = features.shape, len(found.rank), found.image
    parts = [found.at[:W].expand(B, W), index + found.text] if found.merges_text else [index]
    if V < W:  # a rank beyond the last: whatever stands there
        parts.append(found.rank[: W - V].expand(B, W - V))
    at = torch.cat(parts, dim=1) if len(parts) > 1 else index
    return features.gather(1, at[:, :, None].expand(B, at.shape[1], width))


def _tables(cues: Cues, rule: Rule) -> Tables:
    return tables(rule, *cues.tokens.slots, cues.tokens.size.device)


def _fused(cues: Cues, found: Tables, whole: bool = False) -> Decision:
    """The same decision by the fused kernels."""
    assert cues.key is not None
    T, V = cues.tokens.slots
    code, lengths = kernels.decide(
        cues.query if found.prunes else None,
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
