"""Generative models of images and text: which checkpoints are some, and loading one with its processor."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from pumer.checkpoint import has_processor, load, model_class, reading
from pumer.utils.errors import InputError
from pumer.utils.tensors import best_device


def is_generative(source: str | Path) -> bool:
    """Whether a checkpoint is of a model that answers prompts of images and text; errors as of `pumer.load`."""
    config: Any = model_class(source).config_class
    return config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def load_generative(
    source: str | Path, *, dtype: torch.dtype | str | None = None, device: torch.device | str | None = None
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a model that answers prompts of images and text, patched as it was saved, and its processor.

    Args:
        source: Folder or hub name.
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
    model: Any = load(source, **({} if dtype is None else {"dtype": dtype}))
    return model.to(device or best_device()), processor
