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
from pumer.reducers.tables import Rule, Tables, ranks, tables
from pumer.tokens import GONE, Decision


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
    return assign(cues, found, counts(found, cues.tokens.lengths))


def prune_to(cues: Cues, rule: Rule, score: Tensor) -> Decision:
    """Keep the image tokens with the highest scores; [CLS] is always one of them; text stays.

    Args:
        cues: Of these only the tokens are looked at.
        rule: How many.
        score: ``(B, V)``; ties go to the lower rank.
    """
    found = _tables(cues, rule)
    score = score.masked_fill(~cues.image_mask, -torch.inf)
    return assign(cues, found, counts(found, cues.tokens.lengths), score)


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
    if T:  # no gap between words and patches: a rank is a rank; the first word stands first
        index = ordered(~cues.tokens.mask)
    length = cues.tokens.lengths.sum(dim=1, keepdim=True) * ranks(2, cues.tokens.size.device)
    count = counts(found, length)
    code = _by_rank(found, _beyond(found, count), lambda: unit(cues.key.mean(dim=1)), index)  # type: ignore[union-attr]
    return Decision(_by_token(found, code, index), count[:, :, 2], (0, found.image_left))


def assign(cues: Cues, found: Tables, count: Tensor, score: Tensor | None = None) -> Decision:
    """The decision that follows from scores and keys, in plain torch: the reference for the fused kernels.

    Args:
        cues: With what the rule asks for.
        found: How many of each length.
        count: From `counts`.
        score: ``(B, V)`` by which image tokens but [CLS] are pruned, zero or lowest for padding; None: by what the text
            asks for.
    """
    index, beyond = None, _beyond(found, count)
    if found.prunes:
        if score is None:
            rows = cues.text_attention()
            score = asked_for(rows, cues.tokens.size[:, : found.text].sign().to(rows.dtype))
        if score.shape[1] == len(found.fixed):
            score = score.masked_fill(found.fixed, torch.inf)
        else:  # as many as words, which nobody scored, and [CLS] stand before the patches of a stream
            score = pad(score[:, 1:], (found.text + 1, 0), value=torch.inf)
        index = kept_first(score, found.place >= count[:, 1, :1])
    code = _by_rank(found, beyond, lambda: _features(cues, found), index)
    stays = not found.merges_text, not (found.prunes or found.merges_image)
    slots = found.text_left, found.image_left
    return Decision(_by_token(found, code, index), count[:, :, 2], slots, stays=stays)


def _beyond(found: Tables, count: Tensor) -> Tensor:
    """``(B, 2, 4, W)`` bool, of text and image: see `Tables.limits`."""
    return found.limits >= count[..., None]


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
    lengths, slots = torch.stack([words, left], dim=1), (found.text_left, found.image_left)
    return Decision(torch.cat([text, code], dim=1), lengths, slots, stays=(True, False))


def counts(found: Tables, lengths: Tensor) -> Tensor:
    """Rows of `Tables.counts` for text and image, by each sample's own lengths: ``(B, 2)`` to ``(B, 2, 4)`` int64."""
    return torch.embedding(found.counts, lengths + found.offset)


def _features(cues: Cues, found: Tables) -> Tensor:
    """Keys averaged over heads, of length one: ``(B, N, Dh)``, or those of the block alone in which tokens merge."""
    if cues.one_stream and found.merges_text and found.merges_image:
        assert cues.key is not None  # for the type checker: it is in `needs`
        return unit(cues.key.mean(dim=1))
    if not found.merges_text:
        return unit(cues.image_key.mean(dim=1))
    assert cues.text_key is not None
    if not found.merges_image:
        return unit(cues.text_key.mean(dim=1))
    return unit(torch.cat([cues.text_key, cues.image_key], dim=2).mean(dim=1))


def _by_rank(found: Tables, beyond: Tensor, features: Callable[[], Tensor], index: Tensor | None) -> Tensor:
    """The codes ``(B, 2, W)`` of text and image by rank after pruning; both are merged as rows of one batch.

    Args:
        found: Says which of the blocks merge.
        beyond: From `_beyond`.
        features: Gives what similarity is measured on, as `_features` does.
        index: ``(B, T + V)``, the token at each rank: words, then the image's; None: each at its own.
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
        index = index[:, found.text :] - found.text
    at = index.index_select(1, found.at)
    if at.shape[0] == 1:
        return gather_tokens(features, at)
    return features.gather(1, at[:, :, None].expand(-1, -1, features.shape[2]))


def _by_token(found: Tables, code: Tensor, index: Tensor | None) -> Tensor:
    """From codes by rank ``(B, 2, W)`` to codes by input slot ``(B, T + V)``."""
    code = code.flatten(1).index_select(1, found.flat)
    return code if index is None else torch.empty_like(code).scatter_(1, index, code)


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
