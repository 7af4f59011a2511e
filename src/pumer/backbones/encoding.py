"""Images and videos of a generative model encoded before its decoder runs, and what their encoder shows of them.

What the encoder shows is looked at in its second to last layer, without a second run: a hook keeps what enters and
leaves that layer, and keys and queries are projected once more, where a method asks. Encoders whose patches are packed
into one sequence (Qwen-VL's, GLM-V's, Pixtral's) show nothing; a substitute is computed from the features then.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from inspect import signature
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.idefics3.modeling_idefics3 import Idefics3EncoderLayer
from transformers.models.internvl.modeling_internvl import InternVLVisionLayer
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMEncoderLayer
from transformers.utils import ModelOutput

from pumer.backbones.grids import PIXELS, Kind, packing
from pumer.backbones.prefixes import real_columns
from pumer.functional import attention_probabilities, gather_tokens, ordered, unit
from pumer.tokens import attention_bias
from pumer.utils.errors import InputError

ROWS = 32
"""Evenly spaced patches whose attention is looked at, in an encoder without [CLS]."""

_Tokens = Callable[[Any, Mapping[str, Any], Tensor], Tensor]
"""From the model, what its encoder was called with, and values of all patches ``(tiles, N, C)``, to those of the tokens
``(n, C)``."""


@dataclass(eq=False)
class Shown:
    """What the second to last layer of a vision encoder shows of every token; computed when it is asked for.

    Attributes:
        layer: That layer.
        entering: ``(tiles, N, Dv)``, what enters it.
        leaving: ``(tiles, N, Dv)``, what leaves it.
        mask: As the layer gets it, or None.
        to_tokens: From values of patches to those of tokens.
        merged: Whether an earlier layer merges patches, so that nothing can be said of each of them.
    """

    layer: Any
    entering: Tensor
    leaving: Tensor
    mask: Tensor | None
    to_tokens: Callable[[Tensor], Tensor]
    merged: bool

    @cached_property
    def states(self) -> Tensor:
        """``(n, Dv)``."""
        return self._tokens(self.leaving)

    @cached_property
    def key(self) -> Tensor:
        """``(n, Dh)``, the mean over heads."""
        return self._tokens(self._projected[1].mean(dim=1))

    @cached_property
    @torch.no_grad()
    def attention(self) -> Tensor:
        """``(n,)``, at least float32: the mean over heads of the probabilities that [CLS], or some patches, attend."""
        query, key = self._projected
        tiles, H, N, Dh = query.shape
        real = _real(self.mask, key)
        if isinstance(self.layer, _WITH_CLS):
            rows = torch.zeros(tiles, 1, dtype=torch.int64, device=key.device)
        else:
            count = real.sum(dim=1, keepdim=True)
            steps = torch.arange(min(ROWS, N), device=key.device)
            rows = ordered(~real).gather(1, steps * count // len(steps))
        asking = gather_tokens(query.transpose(1, 2).flatten(2), rows).unflatten(2, (H, Dh)).transpose(1, 2)
        bias = None if self.mask is None else attention_bias(real, key.dtype)
        received = attention_probabilities(asking, key, bias).mean(dim=(1, 2))
        return self._tokens(received[:, :, None])[:, 0]

    def _tokens(self, values: Tensor) -> Tensor:
        if self.merged:
            raise InputError(
                "the vision encoder merges patches before its second to last layer, which this method looks at; let "
                "the vision encoder reduce from that layer on, or give a method that looks at features alone: divprune"
            )
        return self.to_tokens(values.contiguous())

    @cached_property
    @torch.no_grad()
    def _projected(self) -> tuple[Tensor, Tensor]:
        """Queries and keys ``(tiles, H, N, Dh)``."""
        if isinstance(self.layer, InternVLVisionLayer):
            attention, normed = self.layer.attention, self.layer.layernorm_before(self.entering)
            query, key = attention.q_norm(attention.q_proj(normed)), attention.k_norm(attention.k_proj(normed))
        else:
            attention, normed = self.layer.self_attn, self.layer.layer_norm1(self.entering)
            query, key = attention.q_proj(normed), attention.k_proj(normed)
        split = partial(torch.unflatten, dim=2, sizes=(-1, attention.head_dim))
        return split(query).transpose(1, 2), split(key).transpose(1, 2)


@dataclass(eq=False)
class Encoded:
    """All images, or all videos, of a batch of prompts.

    Attributes:
        features: ``(n, D)`` of all tokens, in the order of their placeholders.
        deep: The same of the features that are added after the first layers (DeepStack), for each of these.
        listed: Whether the model takes a list with the features of each image; else it takes one tensor.
        shown: What the encoder shows, if it is one that does.
    """

    features: Tensor
    deep: tuple[Tensor, ...]
    listed: bool
    shown: Shown | None

    def output(self, features: Sequence[Tensor], deep: Sequence[Sequence[Tensor]]) -> ModelOutput:
        """What the encoder would have returned for fewer tokens; see `encoder_output`."""
        return encoder_output(features, deep, self.listed)


def encoder_output(features: Sequence[Tensor], deep: Sequence[Sequence[Tensor]], listed: bool) -> ModelOutput:
    """A vision encoder's output as a model takes it for ``mm_encoder_outputs``.

    Args:
        features: ``(k, D)`` of each image.
        deep: The same for each layer after which features are added; empty in a model without such.
        listed: Whether the model takes a list; else ``(n, 1, D)``, which `generate` can repeat for beams whatever the
            numbers of tokens are.
    """
    pooled = list(features) if listed else torch.cat(list(features))[:, None]
    if deep:
        layers = [list(each) for each in deep]
        return BaseModelOutputWithDeepstackFeatures(pooler_output=pooled, deepstack_features=layers)
    return BaseModelOutputWithPooling(pooler_output=pooled)


def encoder_arguments(model: Any) -> set[str]:
    """Names of the inputs that the vision encoder of a model of images and text takes."""
    return {name for kind in PIXELS for name in _parameters(model, kind)}


def encode(model: Any, inputs: Mapping[str, Any]) -> dict[Kind, Encoded]:
    """Encode the images and videos of a batch of prompts, each once.

    Args:
        model: The model of images and text.
        inputs: What its forward is called with, by name.

    Returns:
        By kind; empty if there is nothing to encode.
    """
    return {kind: _encode(model, kind, inputs) for kind, name in PIXELS.items() if inputs.get(name) is not None}


def _encode(model: Any, kind: Kind, inputs: Mapping[str, Any]) -> Encoded:
    pixels, *others = _parameters(model, kind) or (None,)
    if pixels is None:
        raise InputError(f"{PIXELS[kind]} is given, but a {type(model).__name__} does not read {kind}s; leave it out")
    given = {pixels: inputs[PIXELS[kind]]} | {name: inputs[name] for name in others if inputs.get(name) is not None}
    seen: dict[str, Any] = {}
    layers = [part for part in model.modules() if isinstance(part, _SHOWING)]
    place = max(len(layers) - 2, 0)
    layer = layers[place] if layers else None
    hook = None if layer is None else layer.register_forward_hook(partial(_see, seen, get_ident()), with_kwargs=True)
    try:
        output = getattr(model, f"get_{kind}_features")(**given, return_dict=True)
    finally:
        if hook is not None:
            hook.remove()
    shown, to_tokens = None, _TOKENS.get((model.config.model_type, kind))
    if layer is not None and to_tokens is not None and seen:
        state = model.__dict__.get("pumer_reduction")
        merged = state is not None and any(index < place for index in state.active_reducers("vision"))
        shown = Shown(layer, **seen, to_tokens=partial(to_tokens, model, given), merged=merged)
    pooled, deep = output.pooler_output, getattr(output, "deepstack_features", None) or ()
    return Encoded(_flat(pooled), tuple(map(_flat, deep)), not isinstance(pooled, Tensor), shown)


def _parameters(model: Any, kind: Kind) -> list[str]:
    """Names of what the encoder takes, the pixels first; settings of its output are none of them."""
    encode = getattr(model, f"get_{kind}_features", None)
    names = [] if encode is None else list(signature(encode).parameters)
    return [
        name for name in names if name not in ("kwargs", "return_dict", "output_attentions", "output_hidden_states")
    ]


def _see(
    seen: dict[str, Any], thread: int, layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor
) -> None:
    if thread != get_ident():  # a hook is called for whoever runs the layer
        return
    given = dict(zip(("entering", "mask"), args, strict=False))
    mask = given.get("mask", kwargs.get("attention_mask"))
    seen |= {"entering": given["entering"].detach(), "leaving": output.detach(), "mask": mask}


def _flat(features: Any) -> Tensor:
    """``(n, D)``."""
    return features.flatten(0, -2) if isinstance(features, Tensor) else torch.cat(list(features))


def _real(mask: Tensor | None, key: Tensor) -> Tensor:
    """``(tiles, N)`` bool, which patches are real, of the mask of an encoder that attends both ways."""
    if (real := real_columns(mask)) is not None:
        return real
    return torch.ones(key.shape[0], key.shape[2], dtype=torch.bool, device=key.device)


# ---------------------------------------------------------------- a substitute for encoders that show nothing


def similarity(features: Tensor) -> Tensor:
    """Mean cosine similarity ``(n,)`` of each token to all tokens of its image, in place of attention received."""
    directions = unit(features)
    return directions @ directions.mean(dim=0)


# ---------------------------------------------------------------- from patches to tokens


def _cropped(model: Any, given: Mapping[str, Any], values: Tensor) -> Tensor:
    """Without [CLS], where the model leaves it out of the features."""
    strategy = given.get("vision_feature_select_strategy", model.config.vision_feature_select_strategy)
    return values[:, 1:] if strategy == "default" else values


def _each(model: Any, given: Mapping[str, Any], values: Tensor) -> Tensor:
    """LLaVA: each patch is a token."""
    return _cropped(model, given, values).flatten(0, 1)


def _anyres(model: Any, given: Mapping[str, Any], values: Tensor) -> Tensor:
    """LLaVA-NeXT and LLaVA-OneVision: patches stand as the model places features, and ends of rows show zeros."""
    values = _cropped(model, given, values)
    sizes, tiles, rule = packing(model, given)
    end = values.new_zeros(values.shape[2])
    packed, _ = model.pack_image_features(values.split(tiles), sizes, image_newline=end, **rule)
    return torch.cat(list(packed))


def _pooled(model: Any, given: Mapping[str, Any], values: Tensor) -> Tensor:
    """Videos of LLaVA-OneVision: four neighbouring patches of a frame are one token; the end of a video shows zeros."""
    pooled = model.apply_pooling(_cropped(model, given, values))
    videos, frames = next(iter(given.values())).shape[:2]
    tokens = pooled.reshape(videos, frames * pooled.shape[1], -1)
    return nn.functional.pad(tokens, (0, 0, 0, 1)).flatten(0, 1)


def _connected(model: Any, given: Mapping[str, Any], values: Tensor) -> Tensor:
    """Idefics3 and SmolVLM: the mean of the patches that are shuffled into one token."""
    shuffled = model.connector.pixel_shuffle(values, model.connector.scale_factor)
    return shuffled.unflatten(2, (-1, values.shape[2])).mean(dim=2).flatten(0, 1)


def _shuffled(model: Any, given: Mapping[str, Any], values: Tensor) -> Tensor:
    """InternVL: the same."""
    values = _cropped(model, given, values)
    side = int(values.shape[1] ** 0.5)
    shuffled = model.pixel_shuffle(values.unflatten(1, (side, side)), scale_factor=model.config.downsample_ratio)
    return shuffled.unflatten(3, (-1, values.shape[2])).mean(dim=3).flatten(0, 2)


_TOKENS: dict[tuple[str, Kind], _Tokens] = {
    ("llava", "image"): _each,
    ("llava_next", "image"): _anyres,
    ("llava_onevision", "image"): _anyres,
    ("llava_onevision", "video"): _pooled,
    ("smolvlm", "image"): _connected,
    ("idefics3", "image"): _connected,
    ("internvl", "image"): _shuffled,
}
"""By transformers' model type and what is encoded."""
_WITH_CLS = (CLIPEncoderLayer, InternVLVisionLayer)
_SHOWING = (*_WITH_CLS, SiglipEncoderLayer, Idefics3EncoderLayer, SmolVLMEncoderLayer)
"""Layers of the vision encoders that show what they attend to, with and without [CLS]."""
