"""The generative families whose decoder can reduce: a few lines each, and why others cannot.

A family is a model of images and text, the class that generates with it, and a decoder. Each transformers class has
a subclass here, at module level, so that patched models can be pickled.
"""
# ruff: noqa: D101

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.models.glm4v import modeling_glm4v as glm4v
from transformers.models.idefics3 import modeling_idefics3 as idefics3
from transformers.models.internvl import modeling_internvl as internvl
from transformers.models.llama import modeling_llama as llama
from transformers.models.llava import modeling_llava as llava
from transformers.models.llava_next import modeling_llava_next as llava_next
from transformers.models.llava_onevision import modeling_llava_onevision as llava_onevision
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.mistral3 import modeling_mistral3 as mistral3
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen2_5_vl
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen2_vl
from transformers.models.qwen3 import modeling_qwen3 as qwen3
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3_vl
from transformers.models.smolvlm import modeling_smolvlm as smolvlm

from pumer.backbones.base import Family
from pumer.backbones.decoder import (
    Attention,
    DecoderLayer,
    DeepTextModel,
    Generator,
    TextModel,
    VisionLanguage,
    stock,
)
from pumer.reducers.base import Place

# ---------------------------------------------------------------- decoders


class Llama(TextModel, llama.LlamaModel): ...


class LlamaLayer(DecoderLayer, llama.LlamaDecoderLayer): ...


class LlamaAttention(Attention, llama.LlamaAttention): ...


class Mistral(TextModel, mistral.MistralModel): ...


class MistralLayer(DecoderLayer, mistral.MistralDecoderLayer): ...


class MistralAttention(Attention, mistral.MistralAttention): ...


class Qwen2(TextModel, qwen2.Qwen2Model): ...


class Qwen2Layer(DecoderLayer, qwen2.Qwen2DecoderLayer): ...


class Qwen2Attention(Attention, qwen2.Qwen2Attention): ...


class Qwen3(TextModel, qwen3.Qwen3Model): ...


class Qwen3Layer(DecoderLayer, qwen3.Qwen3DecoderLayer): ...


class Qwen3Attention(Attention, qwen3.Qwen3Attention): ...


class Qwen2VLText(TextModel, qwen2_vl.Qwen2VLTextModel): ...


class Qwen2VLLayer(DecoderLayer, qwen2_vl.Qwen2VLDecoderLayer): ...


class Qwen2VLAttention(Attention, qwen2_vl.Qwen2VLAttention): ...


class Qwen25VLText(TextModel, qwen2_5_vl.Qwen2_5_VLTextModel): ...


class Qwen25VLLayer(DecoderLayer, qwen2_5_vl.Qwen2_5_VLDecoderLayer): ...


class Qwen25VLAttention(Attention, qwen2_5_vl.Qwen2_5_VLAttention): ...


class Qwen3VLText(DeepTextModel, qwen3_vl.Qwen3VLTextModel): ...


class Qwen3VLLayer(DecoderLayer, qwen3_vl.Qwen3VLTextDecoderLayer): ...


class Qwen3VLAttention(Attention, qwen3_vl.Qwen3VLTextAttention): ...


class Glm4vText(TextModel, glm4v.Glm4vTextModel): ...


class Glm4vLayer(DecoderLayer, glm4v.Glm4vTextDecoderLayer): ...


class Glm4vAttention(Attention, glm4v.Glm4vTextAttention): ...


# ---------------------------------------------------------------- families


class Llava(VisionLanguage, llava.LlavaModel): ...


class LlavaGenerator(Generator, llava.LlavaForConditionalGeneration): ...


class LlavaNext(VisionLanguage, llava_next.LlavaNextModel): ...


class LlavaNextGenerator(Generator, llava_next.LlavaNextForConditionalGeneration): ...


class LlavaOnevision(VisionLanguage, llava_onevision.LlavaOnevisionModel): ...


class LlavaOnevisionGenerator(Generator, llava_onevision.LlavaOnevisionForConditionalGeneration): ...


class Qwen2VL(VisionLanguage, qwen2_vl.Qwen2VLModel): ...


class Qwen2VLGenerator(Generator, qwen2_vl.Qwen2VLForConditionalGeneration): ...


class Qwen25VL(VisionLanguage, qwen2_5_vl.Qwen2_5_VLModel): ...


class Qwen25VLGenerator(Generator, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration): ...


class Qwen3VL(VisionLanguage, qwen3_vl.Qwen3VLModel): ...


class Qwen3VLGenerator(Generator, qwen3_vl.Qwen3VLForConditionalGeneration): ...


class SmolVLM(VisionLanguage, smolvlm.SmolVLMModel): ...


class SmolVLMGenerator(Generator, smolvlm.SmolVLMForConditionalGeneration): ...


class Idefics3(VisionLanguage, idefics3.Idefics3Model): ...


class Idefics3Generator(Generator, idefics3.Idefics3ForConditionalGeneration): ...


class InternVL(VisionLanguage, internvl.InternVLModel): ...


class InternVLGenerator(Generator, internvl.InternVLForConditionalGeneration): ...


class Mistral3(VisionLanguage, mistral3.Mistral3Model): ...


class Mistral3Generator(Generator, mistral3.Mistral3ForConditionalGeneration): ...


class Glm4v(VisionLanguage, glm4v.Glm4vModel): ...


class Glm4vGenerator(Generator, glm4v.Glm4vForConditionalGeneration): ...


# ---------------------------------------------------------------- tables

_LLAMA = (Llama, LlamaLayer, LlamaAttention)
_MISTRAL = (Mistral, MistralLayer, MistralAttention)
_QWEN2 = (Qwen2, Qwen2Layer, Qwen2Attention)
_QWEN3 = (Qwen3, Qwen3Layer, Qwen3Attention)
_ANY = (*_LLAMA, *_MISTRAL, *_QWEN2, *_QWEN3)
"""Families whose config names the decoder take any of these."""


@dataclass(frozen=True, kw_only=True)
class DecoderFamily(Family):
    """A generative family.

    Attributes:
        decoder: Name of the text model in a root.
    """

    decoder: str = "language_model"

    def touched(self, root: nn.Module, places: Sequence[Place]) -> Iterable[nn.Module]:
        """All that reads the prompt, but attention only where a layer reduces: others cost nothing more."""
        reducing = {layer for stack, layer in places if stack == "decoder"}
        text: Any = getattr(root, self.decoder)
        yield root
        if reducing:
            yield text
            yield from text.layers
            yield from (text.layers[layer].self_attn for layer in sorted(reducing))


def _family(
    name: str, root: type[Any], generator: type[Any], parts: tuple[type[Any], ...], decoder: str
) -> DecoderFamily:
    classes = {stock(cls): cls for cls in (root, generator, *parts)}
    return DecoderFamily(
        name=name,
        root=stock(root),
        classes=classes,
        decoder=decoder,
        layers=lambda model: {"decoder": getattr(model, decoder).layers},
        widths=lambda model: {"decoder": getattr(model, decoder).config.hidden_size},
        tokens=lambda model: {},
        unsupported_reason=lambda model, stack, layer: _unsupported_reason(getattr(model, decoder), parts),
    )


def _unsupported_reason(text: Any, parts: tuple[type[Any], ...]) -> str | None:
    """Why the layers of a text model cannot reduce; None: they can."""
    if not isinstance(text, tuple(stock(cls) for cls in parts)):
        return f"its decoder is a {type(text).__name__}, which is not among those that are supported"
    config: Any = text.__dict__["config"]
    kinds = {kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"}
    if getattr(config, "sliding_window", None) is not None:
        kinds.add("sliding_attention")
    return f"its decoder has layers of {', '.join(sorted(kinds))}, which look at positions" if kinds else None


_TEXT = "language_model"
DECODERS: dict[str, DecoderFamily] = {
    name: _family(name, *rest)
    for name, rest in {
        "llava": (Llava, LlavaGenerator, _ANY, _TEXT),
        "llava_next": (LlavaNext, LlavaNextGenerator, _ANY, _TEXT),
        "llava_onevision": (LlavaOnevision, LlavaOnevisionGenerator, _ANY, _TEXT),
        "qwen2_vl": (Qwen2VL, Qwen2VLGenerator, (Qwen2VLText, Qwen2VLLayer, Qwen2VLAttention), _TEXT),
        "qwen2_5_vl": (Qwen25VL, Qwen25VLGenerator, (Qwen25VLText, Qwen25VLLayer, Qwen25VLAttention), _TEXT),
        "qwen3_vl": (Qwen3VL, Qwen3VLGenerator, (Qwen3VLText, Qwen3VLLayer, Qwen3VLAttention), _TEXT),
        "smolvlm": (SmolVLM, SmolVLMGenerator, _ANY, "text_model"),
        "idefics3": (Idefics3, Idefics3Generator, _ANY, "text_model"),
        "internvl": (InternVL, InternVLGenerator, _ANY, _TEXT),
        "mistral3": (Mistral3, Mistral3Generator, _ANY, _TEXT),
        "glm4v": (Glm4v, Glm4vGenerator, (Glm4vText, Glm4vLayer, Glm4vAttention), _TEXT),
    }.items()
}
"""By transformers' ``model_type``."""

REFUSED: dict[str, str] = {
    "paligemma": "image and question attend both ways, by a mask that is made outside of the decoder",
    "gemma3": "most of its layers see a window of positions, and image tokens attend both ways",
    "qwen3_5": "three of four of its layers are linear attention, whose state remembers tokens that are gone",
    "llama4": "most of its layers attend within chunks of positions",
}
"""Families that are known and cannot reduce inside the decoder, and why."""
