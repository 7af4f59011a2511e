"""Token counts by length, and other small constants, kept on the device, so that no forward copies them there.

How many tokens stay is an integer rule (Python's arithmetic, Python's rounding). A graph looks it up in a table by each
sample's own length, so that shapes stay static and padding does not count.
"""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor


def pruned(ratio: float, n: int) -> int:
    """Tokens to prune of ``n``: never all of them."""
    return max(min(round(ratio * n), n - 1), 0)


def mergeable(wanted: int, n: int) -> int:
    """Merges among ``n`` tokens: at most one for each even rank but 0, which is [CLS]."""
    return max(min(wanted, (n - 1) // 2), 0)


class Rule:
    """How many tokens stay and how many are merged away, by the real length of a block.

    A rule must be hashable and always mean the same for the same hash, and consist of plain values, so that a compiled
    graph can take it as a constant: a frozen dataclass.
    """

    def kept(self, n: int) -> int:
        """Image tokens of ``n`` that pruning keeps."""
        return n

    def merges(self, n: int) -> int:
        """Of these, those that are merged away."""
        return 0

    def text_merges(self, n: int) -> int:
        """Text tokens of ``n`` that are merged away."""
        return 0

    def left(self, n: int) -> int:
        """Image tokens left of ``n``."""
        return self.kept(n) - self.merges(n)

    def text_left(self, n: int) -> int:
        """Text tokens left of ``n``."""
        return n - self.text_merges(n)


class Tables(NamedTuple):
    """What a rule says for every length of a text block of T slots and an image block of V slots.

    Attributes:
        text: ``T``.
        image: ``V``.
        text_left: Output slots of the text: the largest length in its table, for rules are not monotone for all ratios.
        image_left: Output slots of the image.
        left: Tokens left of each length of the text, and of the image.
        merged: The most tokens that are merged away.
        prunes: Whether image tokens are pruned at some length.
        merges_text: Whether text tokens are merged at some length.
        merges_image: Whether image tokens are merged at some length.
        counts: ``(T + 1 + V + 1, 4)`` int64: kept, merged away, left and once more kept, of a text of n tokens in row
            n, of an image of n tokens in row T + 1 + n.
        counts_int32: The first three for the kernels.
        offset: ``(2,)`` int64, first row of the text and of the image.
        rank: ``(W,)`` int64: 0, 1, 2, ..., where W is the longer block's length, rounded up to an even number.
        limits: ``(4, W)`` int64, to be compared with counts: ranks; in the last row [CLS] counts as beyond all of them,
            since it never is merged away.
        code: ``(2, W)`` int64: code of each rank if nothing is merged (see `Decision`), of the text and of the image.
        least: ``(2, W / 2, 3)`` int64, of each pair if every token of even rank were merged away: code of the even one
            (if it alone were not), of the odd one, and of what is merged into that.
        at: ``(rows * W,)`` int64: the token at each rank of the blocks in which tokens merge, if any do, while none is
            pruned.
        flat: ``(T + V,)`` int64: where each token's rank stands in rows of W, if none is pruned.
        place: ``(T + V,)`` int64: the rank of each image token; below 0 for text.
        fixed: ``(T + V,)`` bool: whether it is text or the image's [CLS], which are not pruned.
    """

    text: int
    image: int
    text_left: int
    image_left: int
    left: tuple[tuple[int, ...], tuple[int, ...]]
    merged: int
    prunes: bool
    merges_text: bool
    merges_image: bool
    counts: Tensor
    counts_int32: Tensor
    offset: Tensor
    rank: Tensor
    limits: Tensor
    code: Tensor
    least: Tensor
    at: Tensor
    flat: Tensor
    place: Tensor
    fixed: Tensor


def tables(rule: Rule, text: int, image: int, device: torch.device, guarded: tuple[int, int] = (0, 0)) -> Tables:
    """The tables of a rule; made once for each rule, shape and device.

    Args:
        rule: Counts by length.
        text: ``T``, slots of the text block.
        image: ``V``, slots of the image block.
        device: Where they are needed.
        guarded: How many tokens of either may be protected, [CLS] at rank 0 not counted: slots are left for them.
    """
    text, image = len(range(text)), len(range(image))  # where they are symbols, a compiled graph is for these numbers
    if _exporting():  # an exported program holds them as constants
        return _make(rule, text, image, device, guarded)
    found: Tables = _constant_tables(rule, text, image, device, guarded)
    return found


def _exporting() -> bool:
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constant_tables(rule: Rule, *shape: Any) -> Tables:
    found: Tables = _kept((rule, *shape), lambda: _make(rule, *shape))
    return found


def _kept(key: Hashable, make: Callable[[], tuple[Any, ...]]) -> Any:
    """What was made for a key before, or is made now: on the CPU first, whatever the default device is."""
    found = _KEPT.get(key)
    if found is None:
        with torch.inference_mode(False), torch.device("cpu"):  # a later forward may train
            found = make()
        if all(type(x) is Tensor for x in found if isinstance(x, Tensor)):  # a fake one is for its own mode only
            while len(_KEPT) >= _MOST:
                _KEPT.pop(next(iter(_KEPT)), None)
            _KEPT[key] = found
    return found


_KEPT: dict[Hashable, tuple[Any, ...]] = {}
_MOST = 2048


def _make(rule: Rule, text: int, image: int, device: torch.device, guarded: tuple[int, int]) -> Tables:
    texts = [(n, rule.text_merges(n), rule.text_left(n)) for n in range(text + 1)]
    images = [(rule.kept(n), rule.merges(n), rule.left(n)) for n in range(image + 1)]
    # each protected token is one that pruning would have removed, and spoils one merge
    text_left, image_left = (
        max(min(n, max(kept, most) - max(merged - most, 0)) for n, (kept, merged, _) in enumerate(rows))
        for rows, most in zip((texts, images), guarded, strict=True)
    )
    merges_text, merges_image = (any(merged for _, merged, _ in rows) for rows in (texts, images))
    counts, longest = torch.tensor(texts + images), max(text, image)
    rank = torch.arange(longest + longest % 2)
    at = [rank.clamp(max=max(text - 1, 0))] if merges_text else []
    if merges_image:
        at.append(rank.clamp(max=image - 1) + (text if merges_text else 0))
    code = torch.stack([2 * rank, 2 * (rank + text_left)])
    least, place = code - 2 * (rank // 2 + 1), torch.arange(text + image) - text
    return Tables(
        text=text,
        image=image,
        text_left=text_left,
        image_left=image_left,
        left=(tuple(n for _, _, n in texts), tuple(n for _, _, n in images)),
        merged=sum(max(n for _, n, _ in rows) for rows in (texts, images)),
        prunes=any(kept < n for n, (kept, _, _) in enumerate(images)),
        merges_text=merges_text,
        merges_image=merges_image,
        counts=torch.cat([counts, counts[:, :1]], dim=1).to(device),
        counts_int32=counts.int().to(device),
        offset=torch.tensor([0, text + 1]).to(device),
        rank=rank.to(device),
        limits=torch.stack([rank, rank, rank, rank.masked_fill(rank == 0, longest + 1)]).to(device),
        code=code.to(device),
        least=torch.stack([least[:, 0::2], least[:, 1::2], least[:, 1::2] + 1], dim=2).to(device),
        at=(torch.cat(at) if at else rank).to(device),
        flat=torch.cat([rank[:text], rank[:image] + len(rank)]).to(device),
        place=place.to(device),
        fixed=(place <= 0).to(device),
    )


def integers(device: torch.device, *values: int) -> Tensor:
    """A small constant ``(n,)`` int64 on the device, made once."""
    return torch.tensor(values, device=device) if _exporting() else _constant(device, values)[0]


def ranks(count: int, device: torch.device) -> Tensor:
    """0, 1, 2, ... up to ``count - 1``: ``(count,)`` int64 on the device, made once."""
    return torch.arange(count, device=device) if _exporting() else _constant(device, range(count))[0]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constant(device: torch.device, values: tuple[int, ...] | range) -> tuple[Tensor]:
    """In a tuple: the compiler gives all bare tensors that one such function returns the same name, and refuses it."""
    found: tuple[Tensor] = _kept(
        (device, values), lambda: (torch.tensor(values, dtype=torch.int64, device="cpu").to(device),)
    )
    return found
