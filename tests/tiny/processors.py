"""Tiny processors for the models of `tiny.decoders`: words, a chat template, and images as each family takes them."""

from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoProcessor,
    CLIPImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
)

from tiny.decoders import _TILINGS, BEGIN, END, IMAGE, IMAGE_END, IMAGE_START, PAD, PATCH, SIDE, VIDEO, VOCABULARY

WORDS = ("what", "colour", "is", "this", "it", "?", "blue", "green", "red", "yes", "no")
"""The first words; all others are called by their ids, as in "w42"."""
_SPECIAL = {
    **{PAD: "<pad>", BEGIN: "<s>", END: "</s>", IMAGE: "<image>", VIDEO: "<video>"},
    **{IMAGE_START: "<start>", IMAGE_END: "<end>"},
}
TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<start><image><end>{% else %}{{ part.text }} {% endif %}"
    "{% endfor %}{% endfor %}"
)
"""Images and texts in their order, without roles."""


class QwenImageProcessor(Qwen2_5_VLProcessor):
    """That of Qwen2.5-VL without videos, which would want torchvision."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **kwargs: Any
    ) -> None:
        """As transformers' own, but for the videos."""
        self.image_token, self.image_token_id = _SPECIAL[IMAGE], IMAGE
        self.video_token, self.video_token_id = _SPECIAL[VIDEO], VIDEO
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template, **kwargs)


AutoProcessor.register(Qwen2_5_VLConfig, QwenImageProcessor, exist_ok=True)


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, which knows as many as the models have ids."""
    names = {i: f"w{i}" for i in range(VOCABULARY)} | dict(enumerate(WORDS, start=3)) | _SPECIAL
    words = Tokenizer(models.WordLevel({name: i for i, name in names.items()}, unk_token=names[VOCABULARY - 1]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=_SPECIAL[PAD],
        bos_token=_SPECIAL[BEGIN],
        eos_token=_SPECIAL[END],
        extra_special_tokens=[_SPECIAL[i] for i in (IMAGE, VIDEO, IMAGE_START, IMAGE_END)],
    )


def _llava() -> ProcessorMixin:
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return LlavaProcessor(images, tokenizer(), chat_template=TEMPLATE, **_CLIP)


def _llava_next() -> ProcessorMixin:
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=_TILINGS
    )
    return LlavaNextProcessor(images, tokenizer(), chat_template=TEMPLATE, **_CLIP)


def _qwen() -> ProcessorMixin:
    images = Qwen2VLImageProcessorPil(
        patch_size=PATCH // 2, size={"shortest_edge": 4 * PATCH**2, "longest_edge": 100 * PATCH**2}
    )
    return QwenImageProcessor(images, tokenizer(), chat_template=TEMPLATE)


_CLIP = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
PROCESSORS: dict[str, Callable[[], ProcessorMixin]] = {"llava": _llava, "llava_next": _llava_next, "qwen2_5_vl": _qwen}
"""By transformers' model type. Tests that load a Qwen2.5-VL processor from a folder must have imported this module."""
