"""Images and words as METER reads them."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, CLIPImageProcessorPil, ProcessorMixin


class MeterImageProcessorPil(CLIPImageProcessorPil):
    """Resizes images to a square, bicubically with Pillow, and normalises them with CLIP's mean and deviation.

    Args:
        **kwargs: As for transformers' image processors; ``size={"height": 384, "width": 384}`` is the default.
    """

    size = {"height": 384, "width": 384}  # noqa: RUF012
    default_to_square = True
    do_center_crop = False
    crop_size = None


class MeterProcessor(ProcessorMixin):
    """RoBERTa's tokenizer and METER's image processor in one.

    Args:
        image_processor: A `MeterImageProcessorPil`.
        tokenizer: RoBERTa's tokenizer.
        **kwargs: As for transformers' processors.

    Example:
        >>> processor = MeterProcessor(MeterImageProcessorPil(), AutoTokenizer.from_pretrained("roberta-base"))
        >>> processor(image, "What is on the table?", return_tensors="pt").keys()
        dict_keys(['input_ids', 'attention_mask', 'pixel_values'])
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "MeterProcessor":
        """As transformers', without a look for image processors that need torchvision."""
        name = str(pretrained_model_name_or_path)
        tokenizer = AutoTokenizer.from_pretrained(name, **kwargs)
        return cls(MeterImageProcessorPil.from_pretrained(name, **kwargs), tokenizer)
