"""Generative models of full size with random weights, by name: the sizes of published models, nothing is downloaded."""

from collections.abc import Callable
from functools import partial
from typing import Any

import transformers
from transformers import PreTrainedModel

_CLIP = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
_QWEN_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llava-0.1b": (
        "Llava",
        {
            "text_config": {
                "model_type": "llama",
                "hidden_size": 768,
                "intermediate_size": 2048,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "vocab_size": 8192,
            },
            "vision_config": _CLIP
            | {
                "hidden_size": 384,
                "intermediate_size": 1536,
                "num_hidden_layers": 6,
                "num_attention_heads": 6,
                "projection_dim": 384,
            },
            "image_token_id": 8191,
        },
    ),
    "llava-1.5-7b": (
        "Llava",
        {
            "text_config": {
                "model_type": "llama",
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "vocab_size": 32064,
                "max_position_embeddings": 4096,
            },
            "vision_config": _CLIP
            | {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "projection_dim": 768,
            },
            "image_token_id": 32000,
        },
    ),
    "qwen2.5-vl-3b": (
        "Qwen2_5_VL",
        {
            "text_config": {
                "hidden_size": 2048,
                "intermediate_size": 11008,
                "num_hidden_layers": 36,
                "num_attention_heads": 16,
                "num_key_value_heads": 2,
                "vocab_size": 151936,
                "max_position_embeddings": 128_000,
                "rope_parameters": _QWEN_ROPE,
            },
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 2048,
            },
            "image_token_id": 151_655,
            "video_token_id": 151_656,
            "vision_start_token_id": 151_652,
            "vision_end_token_id": 151_653,
            "tie_word_embeddings": True,
        },
    ),
    "smolvlm-2.2b": (
        "SmolVLM",
        {
            "text_config": {
                "model_type": "llama",
                "hidden_size": 2048,
                "intermediate_size": 8192,
                "num_hidden_layers": 24,
                "num_attention_heads": 32,
                "vocab_size": 49_280,
                "max_position_embeddings": 16_384,
            },
            "vision_config": {
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
                "image_size": 384,
                "patch_size": 14,
            },
            "scale_factor": 3,
            "image_token_id": 49_190,
            "pad_token_id": 2,
        },
    ),
}
"""Name to the model in transformers and its sizes; the first one is our own, which a CPU runs in seconds."""


def generative_presets() -> dict[str, Callable[[], PreTrainedModel]]:
    """What builds each of them."""
    return {name: partial(_build, *sizes) for name, sizes in CONFIGS.items()}


def _build(name: str, sizes: dict[str, Any]) -> PreTrainedModel:
    cls: Any = getattr(transformers, f"{name}ForConditionalGeneration")
    model: PreTrainedModel = cls(cls.config_class(**sizes))
    return model
