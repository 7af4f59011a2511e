"""The small models' tokenizer: BERT's WordPiece, lower case, trained on the world's sentences.

Every printable ASCII character is in the vocabulary, letters and digits as continuations ("##a") too, so no ASCII
text has an unknown token: a word the world does not use falls apart into pieces, at worst into characters.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.pretrain_small.sentences import caption
from pumer.world.descriptions import describe_scene
from pumer.world.entailment import hypothesis
from pumer.world.questions import ask
from pumer.world.scenes import NARROW, SceneConfig, generator, make_scene
from pumer.world.sentences import answers
from pumer.world.statements import BLOCK, pair_sets

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_LENGTH = 40
WORDS = Path(__file__).with_name("words.txt")
_WORD_LIMIT = 1_000_000


def corpus(seed: int = 0, scenes: int = 1500, layout: SceneConfig = NARROW) -> Iterator[str]:
    """Sentences of all the world's data sets, and the answers."""
    yield from answers(layout)
    for index in range(scenes):
        rng = generator(seed, "pretrain", index)
        scene = make_scene(rng, layout)
        yield ask(scene, rng).text
        yield caption(scene, rng).text
    yield from _task_sentences(seed, scenes // 5, layout)


def _task_sentences(seed: int, scenes: int, layout: SceneConfig) -> Iterator[str]:
    """Descriptions, entailment sentences and statements about pairs."""
    for first in range(0, scenes, BLOCK):
        rng = generator(seed, "pretrain", first, "nlvr2")
        shown = [make_scene(generator(seed, "pretrain", first + index, "nlvr2"), layout) for index in range(BLOCK)]
        for scene in shown:
            yield from (made.text for made in describe_scene(scene, rng))
            yield from (hypothesis(scene, rng).text for _ in range(3))
        for made in pair_sets(shown, rng):
            yield from (statement.text for statement in made.statements)


@cache
def train_tokenizer(
    seed: int = 0, scenes: int = 1500, vocabulary: int = 800, layout: SceneConfig = NARROW
) -> Tokenizer:
    """Train the WordPiece vocabulary, once in a process.

    With the wide layout the ordinary words of ``words.txt`` are whole words too, though no sentence of the world has
    them: a fine-tuning on other data can learn a word, and hardly its letters.

    Args:
        seed: seed of the sentences; the same seed gives the same vocabulary.
        scenes: how many scenes the sentences are about.
        vocabulary: most entries the trainer may choose; characters that it left out are added after them.
        layout: of the scenes.
    """
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(_characters()),
        show_progress=False,
    )
    tokenizer = _assemble({token: index for index, token in enumerate(SPECIAL)})
    sentences = list(corpus(seed, scenes, layout))
    tokenizer.train_from_iterator(sentences, trainer)
    used = {word for text in sentences for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)}
    continuations = {f"##{character}" for character in string.ascii_lowercase + string.digits}
    # The trainer's merges depend on hash order; whole words and characters are the part that does not.
    kept = (set(tokenizer.get_vocab()) & used) | _characters() | continuations
    if layout.wide:
        kept |= set(WORDS.read_text(encoding="utf-8").split())
    return _assemble({token: index for index, token in enumerate([*SPECIAL, *sorted(kept - set(SPECIAL))])})


def _characters() -> set[str]:
    return {chr(code).lower() for code in range(33, 127)}


def _assemble(vocabulary: dict[str, int]) -> Tokenizer:
    model = models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=_WORD_LIMIT)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pair = [(token, vocabulary[token]) for token in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*pair)
    return tokenizer


def save_tokenizer(folder: Path, tokenizer: Tokenizer | None = None) -> None:
    """Write tokenizer.json and tokenizer_config.json, from which transformers loads a fast tokenizer.

    The class written is the plain fast tokenizer, not BERT's: transformers 5 rebuilds BERT's from its vocabulary and
    drops the word length that keeps long words known.
    """
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer or train_tokenizer(),
        model_max_length=MAX_LENGTH,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    )
    wrapped.save_pretrained(folder)
