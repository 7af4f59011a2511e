"""The fate of every token: recorded during a forward, read as plain tensors afterwards."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pumer.backbones.grids import Grids, Tiles
from pumer.backbones.state import switched
from pumer.patching import reductions, unwrapped
from pumer.reducers.base import Place
from pumer.tokens import Decision, Tokens
from pumer.utils.errors import InputError


class TokensLeft(NamedTuple):
    """Tokens of an example at a point of a forward.

    Attributes:
        name: After what: "input", "before the decoder" or the name of a place.
        text: Of the text.
        images: Of each image; of a model that sees one, and where the images are not known, of all together.
        gone: Input tokens that were pruned and merged there; None of the input.
    """

    name: str
    text: int
    images: tuple[int, ...]
    gone: tuple[int, int] | None


@dataclass
class ForwardTrace:
    """The fate of the tokens in one run of the encoder. All tensors are on the CPU.

    Input tokens are counted as they entered: text positions ``0 .. T-1``, then the image buffer, whose first token is
    [CLS]. In the prompt of a decoder, where text and images interleave, they are counted by position, and T is 0; what
    a vision encoder did before is left out, because it hands over as many tokens as ever. ``N0`` is their number, ``K``
    the slots that are left. A place is a stack ("vision", "fusion" or "decoder") and a layer of it that reduced;
    tensors name it by its index in ``places``.

    Attributes:
        text_tokens: ``T``.
        mask: ``(B, N0)`` bool, real input tokens.
        grid: ``(B, 2)`` patch rows and columns of each image; of a prompt zeros, see ``images``.
        patch_cell: ``(B, N0 - T)`` raster cell (row x columns + column) of each image token, -1 for [CLS] and padding;
            in a prompt the cell in its tile, and -1 for text and tokens that end rows of an image as well.
        places: The places, in order.
        tokens_per_place: Per place, real text and image tokens after it: ``(B,)`` and ``(B,)``.
        pruned_at: ``(B, N0)`` place where the token (or the one it had been merged into) was pruned, or -1.
        merged_at: ``(B, N0)`` first place where the token was merged into another one, or -1.
        merged_into: ``(B, N0)`` the input token that stood where it was merged to then, or -1.
        owner: ``(B, N0)`` final slot that holds the token, or -1 if it was pruned or is padding.
        size: ``(B, K)`` input tokens held by each final slot.
        segment: ``(B, N0)`` 0 for text and above 0 for the image, where the two interleave in the input; else None, as
            the following.
        image: ``(B, N0)`` number of the image, in its prompt, that each token belongs to; -1 for text.
        tile: ``(B, N0)`` number of the tile, in its image; -1 for text.
        images: Of each prompt the images, of each image the tiles, which know their rows and columns; None as well if
            the layout is not known, as of images that were encoded outside of the trace; the numbers are then all -1.
        merged_before: Of each prompt, the tokens that were merged before the decoder: number of the image, number of
            the tile, cell in it, and the input token that each was merged into.
    """

    text_tokens: int
    mask: Tensor
    grid: Tensor
    patch_cell: Tensor
    owner: Tensor
    size: Tensor
    pruned_at: Tensor
    merged_at: Tensor
    merged_into: Tensor
    places: tuple[Place, ...] = ()
    tokens_per_place: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    segment: Tensor | None = None
    image: Tensor | None = None
    tile: Tensor | None = None
    images: tuple[tuple[Tiles, ...], ...] | None = None
    merged_before: tuple[list[tuple[int, ...]], ...] = ()

    def describe(self, sample: int, token: int) -> str:
        """One line about one input token of one example, such as "kept" or "merged into token 7 at layer 2"."""
        if not self.mask[sample, token]:
            return "padding"
        merged, pruned = int(self.merged_at[sample, token]), int(self.pruned_at[sample, token])
        if merged >= 0:
            fate = f"merged into token {int(self.merged_into[sample, token])} at {name(self.places[merged])}"
            return fate if pruned < 0 else f"{fate}, which was pruned at {name(self.places[pruned])}"
        return "kept" if pruned < 0 else f"pruned at {name(self.places[pruned])}"

    def __str__(self) -> str:
        return "\n\n".join(self._table(sample) for sample in range(len(self.mask)))

    def rows(self, sample: int) -> list["TokensLeft"]:
        """Tokens of an example that enter, those that are left before a decoder that gets fewer, and after each place.

        Args:
            sample: Index in the batch.
        """
        text, *images = self._blocks(sample).values()
        found, left = [], self.mask[sample]
        for here, place in enumerate((None, *self.places), start=-1):
            gone = None
            if place is not None:
                pruned, merged = self.pruned_at[sample] == here, self.merged_at[sample] == here
                left, gone = left & ~(pruned | merged), (int(pruned.sum()), int(merged.sum()))
            counts = [int((left & block).sum()) for block in (text, *images)]
            found.append(TokensLeft("input" if place is None else name(place), counts[0], tuple(counts[1:]), gone))
        layouts = () if self.images is None else self.images[sample]
        whole = [sum(tile.tokens for tile in tiles) for tiles in layouts]
        if sum(whole) > sum(found[0].images):
            entered = tuple(whole) if len(images) == len(whole) else (sum(whole),)
            joined = len(self.merged_before[sample]) if self.merged_before else 0
            before = sum(whole) - sum(found[0].images) - joined, joined
            found[:1] = [found[0]._replace(images=entered), found[0]._replace(name="before the decoder", gone=before)]
        return found

    def _table(self, sample: int) -> str:
        """The rows of an example as text."""
        rows = [[f"example {sample}", *self._blocks(sample), "pruned", "merged"]]
        rows += [[row.name, *map(str, (row.text, *row.images, *(row.gone or ("", ""))))] for row in self.rows(sample)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        return "\n".join(line.rstrip() for line in lines)

    def text_mask(self, sample: int) -> Tensor:
        """``(N0,)`` bool, the input tokens of an example that are text."""
        if self.segment is None:
            return torch.arange(self.mask.shape[1]) < self.text_tokens
        return self.segment[sample] == 0

    def _blocks(self, sample: int) -> dict[str, Tensor]:
        """By name ``(N0,)`` bool, the text tokens of an example and those of each image."""
        text = self.text_mask(sample)
        images = 0 if self.images is None else len(self.images[sample])
        if self.image is None or images < 2:
            return {"text": text, "image": ~text}
        return {"text": text} | {f"image {number}": self.image[sample] == number for number in range(images)}


def name(place: Place) -> str:
    """Name of a place: "layer 5" of the cross-modal layers, "vision layer 3"."""
    stack, layer = place
    return f"layer {layer}" if stack == "fusion" else f"{stack} layer {layer}"


@dataclass
class Trace:
    """Every encoder run inside a `trace` block; a model that sees two images per example runs twice.

    Printed, it is a table of each example: the tokens that each place has left, and how many were pruned or merged.

    Attributes:
        forwards: One entry per run, in order.
    """

    forwards: list[ForwardTrace] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n\n".join(f"forward {number}\n{forward}" for number, forward in enumerate(self.forwards))

    def begin(self, tokens: Tokens, cell: Tensor | Grids, history: Sequence[tuple[Place, Decision]]) -> None:
        """Called by a patched model when a stream enters its first cross-modal layer, or a prompt its decoder."""
        mask, T = tokens.source >= 0, tokens.text_length
        owner, size, segments = tokens.source, tokens.size, tokens.segments
        if history:  # back to the start: every patch is there, in a slot of its own
            slot = torch.arange(mask.shape[1], device=mask.device)
            mask = torch.cat([mask[:, :T], torch.ones_like(mask[:, T:])], dim=1)
            owner = torch.cat([owner[:, :T], slot[T:].expand(len(mask), -1)], dim=1)
            size = torch.cat([size[:, :T], mask[:, T:].to(size.dtype)], dim=1)
        blank = torch.full(mask.shape, -1, dtype=torch.int64)
        grids = cell if isinstance(cell, Grids) else None
        grid, patch_cell = _rasters(_recorded(cell)) if isinstance(cell, Tensor) else _tiles(cell)
        trace = ForwardTrace(
            text_tokens=tokens.text_length,
            mask=_recorded(mask),
            grid=grid,
            patch_cell=patch_cell,
            owner=_recorded(owner),
            size=_recorded(size),
            pruned_at=blank,
            merged_at=blank.clone(),
            merged_into=blank.clone(),
            segment=None if segments is None else _recorded(segments.segment.gather(1, owner.clamp(min=0))),
            image=None if grids is None else grids.cells[:, :, 0],
            tile=None if grids is None else grids.cells[:, :, 1],
            images=None if grids is None else grids.images,
            merged_before=() if grids is None else _merged(grids),
        )
        self.forwards.append(trace)
        for place, decision in history:
            self._note(place, decision.after_text(tokens.mask[:, :T]))

    def step(self, place: Place, decision: Decision, tokens: Tokens) -> None:
        """Called by a patched model after each reduction; `begin` reports those of a vision encoder."""
        if place[0] != "vision":
            self._note(place, decision)

    def _note(self, place: Place, decision: Decision) -> None:
        trace, before, here = self.forwards[-1], self.forwards[-1].owner, len(self.forwards[-1].places)
        destination, index = _recorded(decision.destination), _recorded(decision.index)
        present = before >= 0
        after = destination.gather(1, before.clamp(min=0)).masked_fill(~present, -1)
        trace.pruned_at[present & (after < 0)] = here
        moved = present & (after >= 0) & (index.gather(1, after.clamp(min=0)) != before)
        first = moved & (trace.merged_at < 0)
        # the slot a token was merged to is held by the one input token that stays at it
        stays = present & (after >= 0) & ~moved & (trace.merged_at < 0)
        mask = _recorded(decision.mask)
        anchor = torch.full(mask.shape, -1, dtype=torch.int64)
        sample, token = stays.nonzero(as_tuple=True)
        anchor[sample, after[sample, token]] = token
        trace.merged_at[first] = here
        trace.merged_into[first] = anchor.gather(1, after.clamp(min=0))[first]
        trace.owner, trace.size = after, _recorded(decision.total(trace.size.to(decision.lengths.device)))
        trace.places = (*trace.places, place)
        text, image = _recorded(decision.lengths).unbind(dim=1)
        trace.tokens_per_place.append((text, image))


@contextmanager
def trace(model: nn.Module) -> Iterator[Trace]:
    """Record what becomes of every token in the forwards of a ``with`` block, those of this thread or task alone.

    Args:
        model: A patched model that is not compiled.

    Yields:
        The trace; it is filled forward by forward.

    Raises:
        InputError: If the model is not patched, or is compiled.

    Example:
        ``with pumer.trace(model) as trace: model(**inputs)``, then ``trace.forwards[0].pruned_at``.
    """
    compiled = any(module.__dict__.get("_compiled_call_impl") is not None for module in unwrapped(model).modules())
    if unwrapped(model) is not model or compiled:
        raise InputError("a compiled model cannot be traced; trace the model that was given to torch.compile")
    record = Trace()
    with switched(reductions(model), "recording", record):
        yield record


def _rasters(cell: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of each image ``(B, 2)`` and raster cells ``(B, V)``, from rows and columns ``(B, V, 2)``."""
    row, column = cell.unbind(dim=-1)
    columns = column.amax(dim=1, keepdim=True) + 1
    grid = torch.stack([row.amax(dim=1) + 1, columns[:, 0]], dim=1)
    return grid, torch.where(row < 0, -1, row * columns + column)


def _tiles(grids: Grids) -> tuple[Tensor, Tensor]:
    """The same for prompts, whose tokens have cells of their own tile."""
    image, tile, row, column = grids.cells.unbind(dim=-1)
    columns = torch.zeros_like(row)
    for sample, images in enumerate(grids.images or ()):
        for number, tiles in enumerate(images):
            for rank, each in enumerate(tiles):
                columns[sample, (image[sample] == number) & (tile[sample] == rank)] = each.columns
    return image.new_zeros(len(image), 2), torch.where(row < 0, -1, row * columns + column)


def _merged(grids: Grids) -> tuple[list[tuple[int, ...]], ...]:
    """See `ForwardTrace.merged_before`."""
    if grids.merged is None:
        return ()
    cells, into = grids.merged
    raster = _tiles(Grids(cells, grids.images))[1]
    found = torch.stack([cells[..., 0], cells[..., 1], raster, into], dim=-1)
    return tuple([tuple(token) for token in sample[sample[:, 3] >= 0].tolist()] for sample in found)


def _recorded(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()
