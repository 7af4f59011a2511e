"""Generative models of images and text: loading one with its processor, and having it answer."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from pumer.checkpoint import has_processor, load, model_class, reading
from pumer.utils.errors import InputError
from pumer.utils.shipped import located
from pumer.utils.tensors import best_device

MAX_NEW_TOKENS = 64


def is_generative(source: str | Path) -> bool:
    """Whether a checkpoint is of a model that answers prompts of images and text; errors as of `pumer.load`."""
    config: Any = model_class(source).config_class
    return config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def load_generative(
    source: str | Path, *, dtype: torch.dtype | str | None = None, device: torch.device | str | None = None
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a model that answers prompts of images and text, patched as it was saved, and its processor.

    Args:
        source: Folder, hub name, or "small:llava", which ships.
        dtype: Of the weights, as for ``from_pretrained``; None for the checkpoint's own.
        device: By default the accelerator if there is one, else the CPU.

    Returns:
        The model in eval mode, and the processor, which pads prompts on the left.

    Raises:
        InputError: As of `pumer.load`; for a model of another kind, and for one without a processor that has a chat
            template.

    Example:
        >>> model, processor = load_generative("out/llava-pumer")  # doctest: +SKIP
    """
    if not is_generative(source):
        kind = model_class(source).__name__
        raise InputError(f"{source} is a {kind}, which does not generate; give a model such as LLaVA or Qwen2.5-VL")
    processor = load_generative_processor(source)
    model: Any = load(source, **({} if dtype is None else {"dtype": dtype}))
    return model.to(device or best_device()), processor


def load_generative_processor(source: str | Path) -> Any:
    """The processor alone; arguments and errors as of `load_generative`."""
    source = located(source)
    if not has_processor(source):
        raise InputError(f"{source} holds no processor; add one: processor.save_pretrained('{source}')")
    with reading(f"the processor of {source} cannot be read"):
        processor: Any = AutoProcessor.from_pretrained(str(source))
    if getattr(processor, "chat_template", None) is None:
        raise InputError(f"the processor of {source} has no chat template; put the model's chat_template.jinja into it")
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def prompt(processor: Any, images: Sequence[Image.Image], question: str) -> Any:
    """Model inputs of one question about images, which stand before it, by the processor's chat template."""
    return prompts(processor, [(images, question)])


def prompts(processor: Any, asked: Iterable[tuple[Sequence[Image.Image], str]]) -> Any:
    """Model inputs of several questions, each about its images; see `prompt`."""
    conversations = []
    for images, question in asked:
        content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
        conversations.append([{"role": "user", "content": [*content, {"type": "text", "text": question}]}])
    return conversed(processor, conversations)


def conversed(processor: Any, conversations: Sequence[Sequence[Mapping[str, Any]]]) -> Any:
    """Model inputs of several conversations, as the processor's chat template takes them; images are PIL images."""
    return processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )


def generated(model: Any, processor: Any, inputs: Mapping[str, Tensor]) -> str:
    """A model's answer to a prompt: the likeliest token each time, at most `MAX_NEW_TOKENS`."""
    return answers(model, processor, inputs)[0]


def answers(
    model: Any, processor: Any, inputs: Mapping[str, Tensor], max_new_tokens: int = MAX_NEW_TOKENS, **settings: Any
) -> list[str]:
    """A model's answers to several prompts, by the likeliest token each time; `settings` are those of ``generate``."""
    return [each.text for each in replies(model, processor, inputs, max_new_tokens, **settings)]


class Reply(NamedTuple):
    """A model's answer.

    Attributes:
        text: Without the tokens that end it.
        new_tokens: How many it has, with the one that ends it.
        ended: Whether it has one that ends it.
    """

    text: str
    new_tokens: int
    ended: bool


def replies(
    model: Any, processor: Any, inputs: Mapping[str, Tensor], max_new_tokens: int = MAX_NEW_TOKENS, **settings: Any
) -> list[Reply]:
    """A model's answers, as of `answers`, with their lengths."""
    unused = dict.fromkeys(("temperature", "top_p", "top_k"))  # that a checkpoint gives for sampling
    settings |= {"max_new_tokens": max_new_tokens, "pad_token_id": processor.tokenizer.pad_token_id}
    ids = model.generate(**inputs, do_sample=False, num_beams=1, **settings, **unused)
    new = ids[:, inputs["input_ids"].shape[1] :]
    ends = model.generation_config.eos_token_id
    ended = torch.isin(new, torch.tensor([] if ends is None else ends, dtype=new.dtype, device=new.device))
    lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, new.shape[1]).tolist()
    texts: list[str] = processor.batch_decode(new, skip_special_tokens=True)
    return [Reply(text.strip(), *more) for text, *more in zip(texts, lengths, ended.any(1).tolist(), strict=True)]
