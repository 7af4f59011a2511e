"""What a reduction is based on: tokens, and what the attention of their layer shows. Letters as in `pumer.tokens`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from pumer.functional import attention_probabilities, evenly_spaced, gather_tokens
from pumer.tokens import Tokens

ASKING = 64
"""In a decoder the last text tokens ask, at most so many: those before an image cannot see it, and rows are long."""


@dataclass(frozen=True)
class Cues:
    """What a reducer may look at when it decides; an adapter fills in what the reducer ``needs``.

    Attributes:
        tokens: Text and image after the attention, before the feed-forward part.
        key: ``(B, H, M, Dh)`` attention keys: of the whole stream, or of the image alone where text and image are two
            streams. None if the reducer needs none.
        query: ``(B, H, Q, Dh)`` queries of the layer: of the whole stream, or of the text alone, or None.
        bias: ``(B, 1, 1, M)`` attention bias of the keys, or None.
        causal: Whether a token attends only to those before it, as in a decoder; of ``H`` heads several may then share
            a key.
        probabilities: From queries, keys and bias to attention probabilities; see `functional.attention_probabilities`.
        own_key: ``(B, H, T, Dh)`` keys of the text where it is a stream of its own, or None.
        cls_query: ``(B, H, 1, Dh)`` query of the image's [CLS] where the image is a stream of its own, or None.
        layer: 0-based layer of the stack.
        silent: ``(B, N)`` bool, the tokens of an answer that is given for training, and what follows: they do not ask,
            for the answer is not there when it is generated. None if there are none.
    """

    tokens: Tokens
    key: Tensor | None = None
    query: Tensor | None = None
    bias: Tensor | None = None
    probabilities: Callable[[Tensor, Tensor, Tensor | None], Tensor] = attention_probabilities
    own_key: Tensor | None = None
    cls_query: Tensor | None = None
    layer: int = 0
    causal: bool = False
    silent: Tensor | None = None

    @property
    def one_stream(self) -> bool:
        """Whether text and image attend to each other as one sequence, so that they have comparable keys."""
        return len(self.tokens.streams) == 1

    @property
    def text_mask(self) -> Tensor:
        """``(B, T)`` bool, real text tokens, compact."""
        return self.tokens.blocks[:, : self.tokens.slots[0]]

    @property
    def words(self) -> Tensor:
        """``(B, T)`` bool, the text tokens that may ask, compact."""
        mask, segments = self.text_mask, self.tokens.segments
        if self.silent is None or segments is None:
            return mask
        return mask & ~self.silent.gather(1, segments.index[:, : mask.shape[1]])

    @property
    def image_mask(self) -> Tensor:
        """``(B, V)`` bool, real image tokens, compact."""
        return self.tokens.blocks[:, self.tokens.slots[0] :]

    @property
    def text_key(self) -> Tensor:
        """``(B, H, T, Dh)`` keys by which text tokens are compared."""
        return self._text(self.key) if self.own_key is None else self.own_key

    @property
    def image_key(self) -> Tensor:
        """``(B, H, V, Dh)``."""
        return self._image(self.key)

    @property
    def image_states(self) -> Tensor:
        """``(B, V, D)`` after the attention."""
        return self._image(self.tokens.streams[-1])

    @property
    def text_query(self) -> Tensor:
        """``(B, H, T, Dh)``."""
        return self._text(self.query)

    def text_attention(self) -> Tensor:
        """``(B, H, T, M)`` attention probabilities of the text tokens, to all that they attend to here."""
        at = self.tokens.segments
        return self._attention(self.text_query, None if at is None else at.index[:, : self.tokens.slots[0]])

    def text_rows(self) -> Tensor:
        """``(B, H, T, V)`` text-to-image attention probabilities."""
        return self.columns(self.text_attention())

    def asking_rows(self) -> tuple[Tensor, Tensor]:
        """Text-to-image attention probabilities of the text that asks: all of it, in a decoder the last tokens.

        Returns:
            ``(B, H, R, V)``, with R at most `ASKING` in a decoder, and ``(B, R)`` bool, which rows there are.
        """
        mask, segments = self.words, self.tokens.segments
        if not self.causal or segments is None:
            return self.text_rows(), mask
        rows = min(ASKING, mask.shape[1])
        rank = mask.sum(dim=1, keepdim=True) - rows + torch.arange(rows, device=mask.device)
        at = segments.index[:, : mask.shape[1]].gather(1, rank.clamp(min=0))
        return self._rows(at), rank >= 0

    def cls_row(self) -> Tensor:
        """``(B, H, V)`` attention probabilities of the image's first token, [CLS]."""
        query = self.cls_query
        if query is None:
            assert self.query is not None  # for the type checker: what a reducer reads is in its `needs`
            T, at = self.tokens.slots[0], self.tokens.segments
            query = self.query[:, :, T : T + 1] if at is None else gather_tokens(self.query, at.index[:, T : T + 1])
        return self.columns(self._attention(query))[:, :, 0]

    def last_row(self) -> Tensor:
        """``(B, H, V)`` attention probabilities of the last real token among those that ask: that of a prompt."""
        asking = self._asking
        slot = torch.arange(asking.shape[1], device=asking.device)
        return self._rows(torch.where(asking, slot, 0).amax(dim=1, keepdim=True))[:, :, 0]

    def sampled_rows(self, most: int) -> tuple[Tensor, Tensor]:
        """Attention probabilities of at most so many evenly spaced real tokens, among all that ask in this layer.

        Args:
            most: ``S``; all tokens of a sample that has fewer.

        Returns:
            ``(B, H, S, V)``, and ``(B, S)`` bool, which rows there are.
        """
        at, there = evenly_spaced(self._asking, most)
        return self._rows(at), there

    def spread(self, image: Tensor, text: float) -> Tensor:
        """``(B, V)`` of the image tokens as ``(B, N)`` of all; those of the text get one value."""
        (T, _), segments = self.tokens.slots, self.tokens.segments
        if segments is None:
            return pad(image, (T, 0), value=text)
        N = self.tokens.size.shape[1]
        at = torch.where(segments.mask, segments.index, N)[:, T:]
        return image.new_full((image.shape[0], N + 1), text).scatter(1, at, image)[:, :N]

    @property
    def _asking(self) -> Tensor:
        """``(B, Q)`` bool, which queries are those of real tokens."""
        asking = self.tokens.mask if self.one_stream else self.text_mask
        return asking if self.silent is None else asking & ~self.silent

    def _rows(self, at: Tensor) -> Tensor:
        assert self.query is not None
        return self.columns(self._attention(gather_tokens(self.query, at), at))

    def _attention(self, query: Tensor, at: Tensor | None = None) -> Tensor:
        """Of queries ``(B, H, Q, Dh)``, which stand at ``at (B, Q)``."""
        assert self.key is not None
        if not self.causal or at is None:
            return self.probabilities(query, self.key, self.bias)
        slot = torch.arange(self.key.shape[2], device=at.device)
        hidden = ~self.tokens.mask[:, None] | (slot > at[:, :, None])
        # the lowest number, not minus infinity: a row that sees nothing is looked at by nobody, but must not be NaN
        bias = torch.zeros(hidden.shape, device=at.device).masked_fill_(hidden, torch.finfo(torch.float32).min)
        return self.probabilities(query, self.key, bias[:, None])

    def _text(self, x: Tensor | None) -> Tensor:
        """Of ``(..., N or T, D)`` the text tokens."""
        assert x is not None
        (T, _), segments = self.tokens.slots, self.tokens.segments
        return x[..., :T, :] if segments is None else gather_tokens(x, segments.index[:, :T])

    def _image(self, x: Tensor | None) -> Tensor:
        """Of ``(..., N or V, D)`` the image tokens."""
        assert x is not None
        (T, V), segments = self.tokens.slots, self.tokens.segments
        return x[..., x.shape[-2] - V :, :] if segments is None else gather_tokens(x, segments.index[:, T:])

    def columns(self, rows: Tensor) -> Tensor:
        """Of ``(B, H, Q, M)`` the image tokens': ``(B, H, Q, V)``."""
        (T, V), segments = self.tokens.slots, self.tokens.segments
        if segments is None:
            return rows[..., rows.shape[3] - V :]
        index = segments.index[:, None, None, T:]
        return rows.gather(3, index.expand(*rows.shape[:3], -1))
