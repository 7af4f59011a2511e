"""The small METER while it pre-trains."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import ViltForQuestionAnswering

from benchmarks.pretrain_small.pool import Batch
from benchmarks.pretrain_small.trainee import Seen, Trainee, likeness
from pumer.backbones import Reduction
from pumer.backbones.meter import joined
from pumer.backbones.streams import expand_text
from pumer.functional import attention_probabilities, text_saliency
from pumer.models.meter import MeterConfig, MeterForQuestionAnswering
from pumer.utils.errors import InputError

_SAME = {
    "layer_norm1": "layernorm_before",
    "self_attn.q_proj": "attention.attention.query",
    "self_attn.k_proj": "attention.attention.key",
    "self_attn.v_proj": "attention.attention.value",
    "self_attn.out_proj": "attention.output.dense",
    "layer_norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
"""Modules of a layer of CLIP's vision transformer, and what they are called in ViLT's."""


class MeterTrainee(Trainee):
    """METER with the heads of pre-training.

    Args:
        config: the model's configuration; text encoder, vision encoder and pairs have one width.
    """

    def __init__(self, config: MeterConfig) -> None:
        """Fresh weights."""
        model, width = MeterForQuestionAnswering(config), config.hidden_size
        super().__init__(model, width, 2 * width, config.text_config.vocab_size)

    def borrow(self, vilt: ViltForQuestionAnswering) -> None:
        """Start from a ViLT of the same width: its words, its patches, and its first layers as the vision encoder.

        They know what the patches show before they know the question. ViLT has no LayerNorm before its first layer:
        here it starts as one that changes little.

        Raises:
            InputError: the ViLT knows other words.
        """
        words = self.model.config.text_config.vocab_size
        if vilt.config.vocab_size != words:
            known = f"the ViLT knows {vilt.config.vocab_size} words and this METER {words}"
            raise InputError(f"{known}: give vilt=FOLDER of one with its tokenizer")
        ours, theirs = self.model.meter, vilt.vilt.embeddings
        vision, size = ours.vision_model, vilt.config.patch_size
        with torch.no_grad():
            ours.text_model.embeddings.word_embeddings.weight.copy_(theirs.text_embeddings.word_embeddings.weight)
            projection = theirs.patch_embeddings.projection
            vision.embeddings.patch_embedding.weight.copy_(projection.weight)
            vision.embeddings.class_embedding.copy_(theirs.cls_token[0, 0])
            places = vision.embeddings.position_embedding.weight
            places.copy_(theirs.position_embeddings[0] + theirs.token_type_embeddings.weight[1])
            places[1:] += projection.bias
            plain = torch.rand(8, projection.in_channels, size, size) * 2 - 1
            patches = projection(plain).flatten(1)[:, None] + places[1:]
            vision.pre_layrnorm.weight.fill_(patches.std(-1).mean())
            for layer, source in zip(vision.encoder.layers, vilt.vilt.encoder.layer, strict=False):
                for name, other in _SAME.items():
                    layer.get_submodule(name).load_state_dict(source.get_submodule(other).state_dict())

    def look(self, batch: Batch, keep: Tensor | None, reduction: Reduction) -> Seen:
        """See `Trainee.look`."""
        meter, T = self.model.meter, batch.ids.shape[1]
        words = meter.encode_text(batch.ids, (batch.ids != 0).long())
        shown = self._encode(batch, keep)
        modality = meter.modality_embeddings.weight
        patches = meter.image_projection(shown) + modality[1]
        tokens = joined(words.states + modality[0], words.mask, patches, reduced=bool(reduction.reducers))
        bias = tokens.biases[0]
        tokens, texts, images = meter.encoder(tokens, reduction, output_hidden_states=True)
        text, image = tokens.streams
        pooled = torch.cat([meter.text_pooler(text), meter.image_pooler(image)], -1)
        asked, found = images[len(images) * 4 // 6][:, 1:], texts[len(texts) * 5 // 6][:, 0]
        cues = (None, None) if reduction.reducers else self._to_reducers(texts, images, words.mask, bias)
        return Seen(shown[:, 1:], asked, found, expand_text(text, tokens, T), pooled, *cues)

    def _to_reducers(
        self, texts: Sequence[Tensor], images: Sequence[Tensor], mask: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What the text layers that reduce go by, with a gradient: saliency and the words' likeness; see `Seen`."""
        layers = self.model.meter.encoder.text_layers[: max(1, len(images) * 4 // 6)]
        shares, alike = [], []
        for layer, text, image in zip(layers, texts, images, strict=False):
            states, cross = layer.attention(text, None, bias), layer.cross_attention
            heads = (cross.num_attention_heads, cross.attention_head_size)
            query, key = (
                linear(x).unflatten(2, heads).transpose(1, 2)
                for linear, x in ((cross.query, states), (cross.key, image))
            )
            saliency = text_saliency(attention_probabilities(query, key, None), mask)[:, 1:]
            alike.append(likeness(layer.attention.key(text).unflatten(2, heads).transpose(1, 2)))
            shares.append(saliency / saliency.sum(1, keepdim=True))
        return torch.stack(shares, 1), torch.stack(alike, 1)

    def _encode(self, batch: Batch, keep: Tensor | None) -> Tensor:
        """The vision encoder on some of the patches: (B, 1 + K, D)."""
        vision = self.model.meter.vision_model
        states = vision.embeddings(batch.images.permute(0, 3, 1, 2).float() / 127.5 - 1)
        if keep is not None:
            index = torch.cat([torch.zeros_like(keep[:, :1]), keep + 1], 1)
            states = states.gather(1, index[:, :, None].expand(-1, -1, states.shape[2]))
        states = vision.pre_layrnorm(states)
        for layer in vision.encoder.layers:
            states = layer(states)
        return vision.post_layernorm(states)
