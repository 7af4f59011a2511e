"""What a reduction is based on: tokens, and what the attention of their layer shows. Letters as in `pumer.tokens`."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pumer.functional import attention_probabilities
from pumer.tokens import Tokens


@dataclass(frozen=True)
class Cues:
    """What a reducer may look at when it decides; an adapter fills in what the reducer ``needs``.

    Attributes:
        tokens: Text and image after the attention, before the feed-forward part.
        key: ``(B, H, M, Dh)`` attention keys, the image's last: of the whole stream, or of the image alone where text
            and image are two streams. None if the reducer needs none.
        text_key: ``(B, H, T, Dh)`` keys by which words are compared, or None.
        query: ``(B, H, T, Dh)`` queries of the text, or None.
        cls_query: ``(B, H, 1, Dh)`` query of the image's [CLS], or None.
        bias: ``(B, 1, 1, M)`` attention bias of the keys, or None.
        probabilities: From queries, keys and bias to attention probabilities; see `functional.attention_probabilities`.
    """

    tokens: Tokens
    key: Tensor | None = None
    text_key: Tensor | None = None
    query: Tensor | None = None
    cls_query: Tensor | None = None
    bias: Tensor | None = None
    probabilities: Callable[[Tensor, Tensor, Tensor | None], Tensor] = attention_probabilities

    @property
    def one_stream(self) -> bool:
        """Whether text and image attend to each other as one sequence, so that they have comparable keys."""
        return len(self.tokens.streams) == 1

    @property
    def text_mask(self) -> Tensor:
        """``(B, T)`` bool, real words, compact; rank 0 is [CLS]."""
        return self.tokens.mask[:, : self.tokens.text_length]

    @property
    def image_mask(self) -> Tensor:
        """``(B, V)`` bool, real image tokens, compact; rank 0 is [CLS]."""
        return self.tokens.mask[:, self.tokens.text_length :]

    @property
    def image_key(self) -> Tensor:
        """``(B, H, V, Dh)``."""
        assert self.key is not None  # for the type checker: what a reducer reads is in its `needs`
        return self.key[:, :, self.key.shape[2] - self.tokens.slots[1] :]

    @property
    def image_states(self) -> Tensor:
        """``(B, V, D)`` after the attention."""
        return self.tokens.streams[-1][:, -self.tokens.slots[1] :]

    def text_attention(self) -> Tensor:
        """``(B, H, T, M)`` attention probabilities of the words, to all that they attend to here."""
        assert self.query is not None and self.key is not None
        return self.probabilities(self.query, self.key, self.bias)

    def text_rows(self) -> Tensor:
        """``(B, H, T, V)`` text-to-image attention probabilities."""
        return self._image_columns(self.text_attention())

    def cls_row(self) -> Tensor:
        """``(B, H, V)`` attention probabilities of the image's [CLS]."""
        assert self.cls_query is not None and self.key is not None
        return self._image_columns(self.probabilities(self.cls_query, self.key, self.bias))[:, :, 0]

    def _image_columns(self, rows: Tensor) -> Tensor:
        return rows[..., rows.shape[3] - self.tokens.slots[1] :]
