"""Texts as a tokenizer sees them: what it cuts off and splits; and words that become tokens of their own."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel

LEAST = 5
"""Rarer words are not added: a training that shows them so seldom teaches little about them."""
_WORD = re.compile(r"\w+")

Words = Mapping[str, Sequence[int]]
"""Words with the ids of the pieces that a tokenizer splits them into."""


def split_words(tokenizer: Any, texts: Iterable[str]) -> Counter[str]:
    """The words that a tokenizer has no token for, as it normalises them, and how often they occur."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    normal = normalizer.normalize_str if normalizer is not None else str
    counts = Counter(word for text in texts for word in _WORD.findall(normal(text)))
    return Counter({word: count for word, count in counts.items() if not _is_known(tokenizer, word)})


def word_count(texts: Iterable[str]) -> int:
    """Words in texts."""
    return sum(len(_WORD.findall(text)) for text in texts)


def add_words(tokenizer: Any, texts: Iterable[str]) -> Words:
    """Give a tokenizer, in place, a token for each word that occurs at least `LEAST` times and that it splits.

    Returns:
        The new words, the most frequent first, with the ids of the pieces that they were split into.
    """
    counts = split_words(tokenizer, texts)
    words = sorted((word for word, count in counts.items() if count >= LEAST), key=lambda word: (-counts[word], word))
    pieces = {word: _pieces(tokenizer, word) for word in words}
    spaces = tokenizer.tokenize(" is") != tokenizer.tokenize("is")  # byte-level BPE: a space belongs to its word
    tokenizer.add_tokens([AddedToken(word, single_word=True, lstrip=spaces, normalized=True) for word in words])
    return pieces


def embed_words(model: PreTrainedModel, tokenizer: Any, words: Words) -> None:
    """Give a model, in place, embeddings of words that `add_words` added: each starts as the mean of its pieces."""
    if not words:
        return
    rows = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(max(rows, len(tokenizer)), mean_resizing=False)
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        for word, pieces in words.items():
            weight[tokenizer.convert_tokens_to_ids(word)] = weight[list(pieces)].mean(0)


def _is_known(tokenizer: Any, word: str) -> bool:
    pieces = _pieces(tokenizer, word)
    return len(pieces) == 1 and pieces[0] != tokenizer.unk_token_id


def _pieces(tokenizer: Any, word: str) -> list[int]:
    """The ids of a word after a space."""
    ids: list[int] = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    return ids
