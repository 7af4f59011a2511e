"""Words that a tokenizer splits."""

import pytest
import torch

import pumer
from pumer.checkpoint import load_processor
from pumer.tasks.words import LEAST, add_words, embed_words, split_words, word_count
from pumer.utils.shipped import located

TEXTS = ["Is the sofa red?"] * LEAST + ["the sofa, a Cat"] * LEAST + ["an elephant"] * (LEAST - 1)


def opened(name):
    return load_processor(located(name)).tokenizer


def test_words_of_several_pieces_are_counted():
    found = split_words(opened("small:vilt"), TEXTS)
    assert {word: found[word] for word in ("sofa", "cat", "elephant")} == {
        "sofa": 2 * LEAST,
        "cat": LEAST,
        "elephant": LEAST - 1,
    }
    assert not {"is", "the", "red"} & set(found)
    assert word_count(["Is the sofa red?", ""]) == 4


@pytest.mark.parametrize("name", ["small:vilt", "small:meter"])
def test_added_words_start_as_the_mean_of_their_pieces(name, tmp_path):
    tokenizer, model = opened(name), pumer.load(located(name))
    pieces = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("sofa", "cat")}
    before = model.get_input_embeddings().weight.detach().clone()
    words = add_words(tokenizer, TEXTS)
    embed_words(model, tokenizer, words)
    assert list(words) == ["sofa", "cat"] and words == pieces
    weight = model.get_input_embeddings().weight
    assert torch.equal(weight[: len(before)], before)
    for word, ids in pieces.items():
        row = tokenizer.convert_tokens_to_ids(word)
        assert torch.allclose(weight[row], before[ids].mean(0))
        assert tokenizer(f"the {word.upper()}, red", add_special_tokens=False)["input_ids"][1] == row
        assert row not in tokenizer(f"{word}x x{word}")["input_ids"]
    pumer.save(model, tmp_path)
    assert pumer.load(tmp_path).get_input_embeddings().num_embeddings == len(before) + 2


def test_nothing_is_added_twice_and_nothing_rare():
    tokenizer = opened("small:vilt")
    assert "elephant" not in add_words(tokenizer, TEXTS)
    assert add_words(tokenizer, TEXTS) == {}
