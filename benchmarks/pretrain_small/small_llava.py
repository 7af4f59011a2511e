"""The small LLaVA: tokenizer, processor, fresh model, and the checkpoint that is written."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from benchmarks.pretrain_small.small import IMAGE_SIZE, PATCH_SIZE
from benchmarks.pretrain_small.tokenizer import train_tokenizer
from pumer.checkpoint import read_model
from pumer.evaluation.generation import PROMPTS, QUESTION
from pumer.models.meter import MeterForQuestionAnswering
from pumer.utils.errors import InputError
from pumer.utils.shipped import SMALL

PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2
PAD, UNKNOWN, BEGIN, END, IMAGE, ANSWER = SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>", "<answer>")
TEMPLATE = (
    f"{BEGIN}"
    "{% for message in messages %}"
    f"{{% if message['role'] == 'assistant' %}}{ANSWER}{{% endif %}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    f"{{% if part['type'] == 'image' %}}{IMAGE}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
    "{% endfor %}{% endif %}"
    f"{{% if message['role'] == 'assistant' %}}{END}{{% endif %}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{ANSWER}{{% endif %}}"
)
"""A prompt is `<s><image>question<answer>`, an answer ends with `</s>`, and the next question follows at once."""
INSTRUCTION = PROMPTS["vqav2"].replace(QUESTION, "").strip()
"""Which `pumer evaluate` adds to every question."""


def tokenizer() -> PreTrainedTokenizerFast:
    """The small models' words and characters, with the words of the instruction, without their special tokens."""
    known = [word for word in train_tokenizer().get_vocab() if not word.startswith("[") or len(word) == 1]
    words, _ = zip(*pre_tokenizers.BertPreTokenizer().pre_tokenize_str(INSTRUCTION.lower()), strict=True)
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *sorted({*known, *words})])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=1_000_000))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        extra_special_tokens=[IMAGE, ANSWER],
        padding_side="left",
    )


def processor() -> LlavaProcessor:
    """Of the small LLaVA: images of any size become 96 x 96 pixels in [-1, 1]."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = CLIPImageProcessorPil(size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return LlavaProcessor(
        images,
        tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def small_llava(words: PreTrainedTokenizerFast, layers: int, width: int) -> LlavaForConditionalGeneration:
    """A fresh decoder behind the vision encoder of the small METER."""
    source = read_model(MeterForQuestionAnswering, str(SMALL["small:meter"]), dtype=torch.float32)[0]
    vision: Any = source.meter.vision_model
    begin, end, pad = (words.convert_tokens_to_ids(each) for each in (BEGIN, END, PAD))
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=begin,
        eos_token_id=end,
        pad_token_id=pad,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision.config.to_dict()),
        text_config=text,
        image_token_index=words.convert_tokens_to_ids(IMAGE),
        image_seq_length=PATCHES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        initializer_range=0.06,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.requires_grad_(False)
    missing, extra = model.model.vision_tower.load_state_dict(vision.state_dict(), strict=False)
    if missing or extra:
        raise InputError(f"the vision encoder of small:meter lacks {missing} and has {extra} too many")
    generation: Any = model.generation_config
    generation.bos_token_id, generation.eos_token_id, generation.pad_token_id = begin, end, pad
    return model


def export(model: LlavaForConditionalGeneration, folder: Path) -> Path:
    """Write the model in bfloat16, with its processor."""
    model.model.language_model.set_attn_implementation("sdpa")
    model.to(torch.bfloat16).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
