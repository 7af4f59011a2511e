"""Where the kernels of one decision keep what they hand on: one workspace instead of an allocation each."""

from dataclasses import dataclass
from functools import lru_cache

ALIGNED = 16  # words: parts begin where a wide load may
SLOTS_ALIGNED = 16


def power_of_two(n: int, least: int = 16) -> int:
    """The smallest power of two that is at least ``n`` and ``least``."""
    return max(least, 1 << (n - 1).bit_length()) if n > 0 else least


def padded(slots: int) -> int:
    """Columns of an attention bias over ``slots`` slots: slices of it stay aligned for the attention kernels."""
    return (slots + SLOTS_ALIGNED - 1) // SLOTS_ALIGNED * SLOTS_ALIGNED


def blocks(n: int, size: int) -> int:
    """How many blocks of ``size`` cover ``n``."""
    return (n + size - 1) // size


@dataclass(frozen=True)
class Layout:
    """Sizes of one decision, and where each part of a sample's workspace begins (in 4-byte words).

    The parts, in order: features ``(T + V, Dh)`` float32 from word 0 on; scores; for each pair of neighbouring ranks
    how good its proposal is, to whom it goes, and where its receiver moves; the slots that pruning leaves, a copy for
    each program that matches a part of the image.

    Attributes:
        text: ``T``, slots of the text block; 0 if text and image are one block.
        image: ``V``, slots of the image block, or of the only one.
        rows: Partial scores of each image token: one for each head and block of text rows.
        proposers: Proposers that one program matches.
        text_parts: Programs that match text.
        image_parts: Programs that match the image.
        pairs: Pairs of both blocks, with what aligns them.
        image_pairs: Where the image's begin among them.
        scores_at: First word of the scores.
        pairs_at: First word about pairs.
        index_at: First word of the slots that pruning leaves.
        words: Words of one sample.
    """

    text: int
    image: int
    rows: int
    proposers: int
    text_parts: int
    image_parts: int
    pairs: int
    image_pairs: int
    scores_at: int
    pairs_at: int
    index_at: int
    words: int


@lru_cache(maxsize=1024)
def layout(
    text: int, image: int, width: int, rows: int, proposers: int, merge_text: bool, merge: bool, prune: bool
) -> Layout:
    """Lay out the workspace of one decision.

    Args:
        text: Slots of the text block.
        image: Slots of the image block.
        width: Head width ``Dh``.
        rows: Partial scores of each image token.
        proposers: Proposers that one program matches.
        merge_text: Whether text is merged.
        merge: Whether the image is merged.
        prune: Whether the image is pruned.
    """
    image_pairs = _aligned((text + 1) // 2)
    pairs = image_pairs + _aligned((image + 1) // 2)
    text_parts = blocks((text + 1) // 2, proposers) if merge_text else 0
    image_parts = blocks((image + 1) // 2, proposers) if merge else int(prune)
    scores_at = _aligned((text + image) * width) if merge or merge_text else 0
    pairs_at = scores_at + (_aligned(rows * image) if prune else 0)
    index_at = pairs_at + 3 * pairs
    words = index_at + (_aligned(image_parts * image) if prune else 0)
    return Layout(
        text, image, rows, proposers, text_parts, image_parts, pairs, image_pairs, scores_at, pairs_at, index_at, words
    )


def _aligned(words: int) -> int:
    return (words + ALIGNED - 1) // ALIGNED * ALIGNED
