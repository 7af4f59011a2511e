"""The tokenizer: no unknown tokens, whole words of the world, the same vocabulary in every run."""

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerFast

from benchmarks.pretrain_small.tokenizer import corpus, save_tokenizer, train_tokenizer

_TOKENIZER = train_tokenizer(scenes=300)


@given(st.text(alphabet=[chr(code) for code in range(32, 127)], max_size=60))
def test_no_ascii_text_has_an_unknown_token(text: str) -> None:
    assert "[UNK]" not in _TOKENIZER.encode(text).tokens


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, _TOKENIZER)
    return folder


def test_it_loads_from_a_folder(saved: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(saved)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    text = "What COLOR is the small ring? " + "x" * 300 + string.punctuation
    ids = loaded(text)["input_ids"]
    assert ids == _TOKENIZER.encode(text).ids
    assert loaded.unk_token_id not in ids
    assert (ids[0], ids[-1]) == (loaded.cls_token_id, loaded.sep_token_id)
    assert loaded(["a", "a b"], padding=True)["input_ids"][0][-1] == loaded.pad_token_id == 0
    assert not isinstance(loaded, BertTokenizerFast)


def test_words_of_all_data_sets_are_single_tokens() -> None:
    whole = train_tokenizer()
    for text in list(corpus(seed=5, scenes=200)):
        assert not any(token.startswith("##") for token in whole.encode(text).tokens), text


def test_training_is_deterministic() -> None:
    again = train_tokenizer.__wrapped__(scenes=100)  # it is kept in a cache
    assert train_tokenizer(scenes=100).get_vocab() == again.get_vocab()
