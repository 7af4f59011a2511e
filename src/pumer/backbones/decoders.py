"""The generative families whose decoder can reduce: a few lines each, and why others cannot.

A family is a model of images and text, the class that generates with it, and a decoder. Each transformers class has
a subclass here, at module level, so that patched models can be pickled.
"""
# ruff: noqa: D101

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.models.clip import modeling_clip as clip
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
from transformers.models.siglip import modeling_siglip as siglip
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
from pumer.backbones.vision import Encoder, VisionModel
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


# ---------------------------------------------------------------- vision encoders


class ClipVision(VisionModel, clip.CLIPVisionModel): ...


class ClipEncoder(Encoder, clip.CLIPEncoder): ...


class SiglipVision(VisionModel, siglip.SiglipVisionModel): ...


class SiglipEncoder(Encoder, siglip.SiglipEncoder): ...


class Idefics3Encoder(Encoder, idefics3.Idefics3Encoder): ...


class SmolVLMEncoder(Encoder, smolvlm.SmolVLMEncoder): ...


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

_ANY = (
    *(Llama, LlamaLayer, LlamaAttention),
    *(Mistral, MistralLayer, MistralAttention),
    *(Qwen2, Qwen2Layer, Qwen2Attention),
    *(Qwen3, Qwen3Layer, Qwen3Attention),
)
"""Decoders of the families whose config names one."""
_TOWER = (ClipVision, ClipEncoder, SiglipVision, SiglipEncoder)
"""Vision encoders of the families whose config names one."""


@dataclass(frozen=True, kw_only=True)
class DecoderFamily(Family):
    """A generative family.

    Attributes:
        decoder: Name of the text model in a root.
        vision: Name of the vision encoder in a root.
        vision_classes: Patched classes of the vision encoders that can reduce.
    """

    decoder: str
    vision: str
    vision_classes: tuple[type[Any], ...]

    def encoder(self, root: nn.Module) -> Any:
        """The loop over the layers of the vision encoder, if it is one that can reduce."""
        kinds = tuple(stock(cls) for cls in self.vision_classes if issubclass(cls, Encoder))
        return next((part for part in getattr(root, self.vision).modules() if isinstance(part, kinds)), None)

    def carriers(self, root: nn.Module) -> list[nn.Module]:
        """The root, and the vision encoder."""
        encoder = self.encoder(root)
        return [root] if encoder is None else [root, encoder]

    def touched(self, root: nn.Module, places: Sequence[Place]) -> Iterable[nn.Module]:
        """All that reads the prompt, but attention only where a layer reduces: others cost nothing more."""
        reducing = {
            stack: sorted(layer for place, layer in places if place == stack) for stack in ("vision", "decoder")
        }
        yield root
        if reducing["decoder"]:
            text: Any = getattr(root, self.decoder)
            yield text
            yield from text.layers
            yield from (text.layers[layer].self_attn for layer in reducing["decoder"])
        if reducing["vision"]:
            yield self.encoder(root)
            models = tuple(stock(cls) for cls in self.vision_classes if issubclass(cls, VisionModel))
            yield from (part for part in getattr(root, self.vision).modules() if isinstance(part, models))


def _family(
    name: str,
    root: type[Any],
    generator: type[Any],
    text: tuple[type[Any], ...] = _ANY,
    decoder: str = "language_model",
    vision: str = "vision_tower",
    vision_classes: tuple[type[Any], ...] = (),
) -> DecoderFamily:
    def layers(model: Any) -> dict[str, Sequence[nn.Module]]:
        encoder = family.encoder(model)
        stacks = {} if encoder is None else {"vision": encoder.layers}
        return {**stacks, "decoder": getattr(model, decoder).layers}

    def widths(model: Any) -> dict[str, int]:
        holders = {"vision": family.encoder(model), "decoder": getattr(model, decoder)}
        return {stack: holder.config.hidden_size for stack, holder in holders.items() if holder is not None}

    def unsupported_reason(model: Any, stack: str, layer: int) -> str | None:
        if stack == "vision" and family.encoder(model) is None:
            kind = type(getattr(model, vision)).__name__
            return f"a {kind} packs images of all sizes into one sequence, or hands nothing on to its attention"
        if stack == "decoder" and layer == len(getattr(model, decoder).layers) - 1:
            return "it is the last one, after which nothing is left to do for the tokens that stay"
        return _unsupported_reason(getattr(model, decoder), text) if stack == "decoder" else None

    family = DecoderFamily(
        name=name,
        root=stock(root),
        classes={stock(cls): cls for cls in (root, generator, *text, *vision_classes)},
        decoder=decoder,
        vision=vision,
        vision_classes=vision_classes,
        layers=layers,
        widths=widths,
        tokens=lambda model: {},
        unsupported_reason=unsupported_reason,
        whole=frozenset({"vision"}),
        spreads=True,
    )
    return family


def _unsupported_reason(text: nn.Module, parts: tuple[type[Any], ...]) -> str | None:
    """Why the layers of a text model cannot reduce; None: they can."""
    if not isinstance(text, tuple(stock(cls) for cls in parts)):
        return f"its decoder is a {type(text).__name__}, which is not among those that are supported"
    config: Any = text.__dict__["config"]
    kinds = {kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"}
    if getattr(config, "sliding_window", None) is not None:
        kinds.add("sliding_attention")
    return f"its decoder has layers of {', '.join(sorted(kinds))}, which look at positions" if kinds else None


_QWEN2_VL = (Qwen2VLText, Qwen2VLLayer, Qwen2VLAttention)
_QWEN2_5_VL = (Qwen25VLText, Qwen25VLLayer, Qwen25VLAttention)
_QWEN3_VL = (Qwen3VLText, Qwen3VLLayer, Qwen3VLAttention)
_GLM4V = (Glm4vText, Glm4vLayer, Glm4vAttention)

DECODERS: dict[str, DecoderFamily] = {
    "llava": _family("llava", Llava, LlavaGenerator, vision_classes=_TOWER),
    "llava_next": _family("llava_next", LlavaNext, LlavaNextGenerator, vision_classes=_TOWER),
    "llava_onevision": _family("llava_onevision", LlavaOnevision, LlavaOnevisionGenerator, vision_classes=_TOWER),
    "qwen2_vl": _family("qwen2_vl", Qwen2VL, Qwen2VLGenerator, _QWEN2_VL, vision="visual"),
    "qwen2_5_vl": _family("qwen2_5_vl", Qwen25VL, Qwen25VLGenerator, _QWEN2_5_VL, vision="visual"),
    "qwen3_vl": _family("qwen3_vl", Qwen3VL, Qwen3VLGenerator, _QWEN3_VL, vision="visual"),
    "smolvlm": _family("smolvlm", SmolVLM, SmolVLMGenerator, _ANY, "text_model", "vision_model", (SmolVLMEncoder,)),
    "idefics3": _family(
        "idefics3",
        Idefics3,
        Idefics3Generator,
        _ANY,
        "text_model",
        "vision_model",
        (Idefics3Encoder,),
    ),
    "internvl": _family("internvl", InternVL, InternVLGenerator),
    "mistral3": _family("mistral3", Mistral3, Mistral3Generator),
    "glm4v": _family("glm4v", Glm4v, Glm4vGenerator, _GLM4V, vision="visual"),
}
"""By transformers' ``model_type``. Vision encoders that are not named cannot reduce."""

REFUSED: dict[str, str] = {
    "paligemma": "image and question attend both ways, by a mask that is made outside of the decoder",
    "gemma3": "most of its layers see a window of positions, and image tokens attend both ways",
    "qwen3_5": "three of four of its layers are linear attention, whose state remembers tokens that are gone",
    "llama4": "most of its layers attend within chunks of positions",
}
"""Families that are known and cannot reduce inside the decoder, and why."""
