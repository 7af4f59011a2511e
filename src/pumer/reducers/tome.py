"""ToMe: merge a fixed number of tokens per layer, whatever they are (Bolya et al., ICLR 2023), from the paper.

Where text and image are one stream, one after the other, they are merged without regard to modality, and from then on
all tokens count as image tokens. In two streams, and where they interleave, only the image is merged.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from pumer.reducers.base import KEYS, Count
from pumer.reducers.cues import Cues
from pumer.reducers.decisions import merge_as_one, prune_and_merge
from pumer.reducers.layered import LayeredConfig
from pumer.reducers.tables import mergeable
from pumer.tokens import Decision
from pumer.utils.config import config
from pumer.utils.errors import InputError


@config
class ToMeConfig(LayeredConfig):
    """Merge the most similar tokens in every layer, as ToMe does.

    Attributes:
        merge_count: Tokens merged away in each of ``layers`` (the paper's ``r``); where that is more than half of those
            that are left, half of them.
        proportional_attention: Add ``log(size)`` to attention logits, as the paper does; not in a decoder, whose
            attention kernels take no such bias.
    """

    merge_count: Count = 0
    proportional_attention: bool = True

    method: ClassVar[str] = "tome"
    amounts: ClassVar[tuple[str, ...]] = ("merge_count",)
    needs: ClassVar[frozenset[str]] = frozenset({KEYS})

    def check_tokens(self, tokens: Mapping[str, int]) -> None:
        """Refuse a count that not even the first layer can merge; prompts of a decoder are of any length."""
        if self.stack not in tokens:
            return
        most = mergeable(tokens[self.stack], tokens[self.stack])
        if self.merge_count > most:
            raise InputError(
                f"merge_count is {self.merge_count}, but {self.stack} layers of this model see {tokens[self.stack]} "
                f"tokens, of which a layer can merge {most}; give {most} or less"
            )

    def merges(self, n: int) -> int:
        """Tokens merged away of ``n``."""
        return mergeable(self.merge_count, n)

    def decide(self, cues: Cues) -> Decision:
        """Merge the most similar tokens: of the stream if there is one, else of the image."""
        as_one = cues.one_stream and cues.tokens.segments is None
        decision = (merge_as_one if as_one else prune_and_merge)(cues, self)
        return replace(decision, proportional=self.proportional_attention)
