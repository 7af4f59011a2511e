"""The small ViLT while it pre-trains."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViltConfig, ViltForQuestionAnswering

from benchmarks.pretrain_small.pool import Batch
from benchmarks.pretrain_small.trainee import Seen, Trainee, likeness
from pumer.backbones import Reduction
from pumer.backbones.streams import expand_text, slots_at_start
from pumer.functional import attention_probabilities, text_saliency
from pumer.tokens import Tokens, attention_bias

REDUCING = (2, 4, 5, 6, 8)
"""Layers in which the paper's schedules reduce."""


class ViltTrainee(Trainee):
    """ViLT with the heads of pre-training.

    Args:
        config: the model's configuration.
    """

    def __init__(self, config: ViltConfig) -> None:
        """Fresh weights."""
        model, width = ViltForQuestionAnswering(config), config.hidden_size
        super().__init__(model, width, width, config.vocab_size)

    @property
    def depth(self) -> int:
        """Transformer layers."""
        return len(self.model.vilt.encoder.layer)

    def look(self, batch: Batch, keep: Tensor | None, reduction: Reduction) -> Seen:
        """See `Trainee.look`."""
        vilt, text = self.model.vilt, batch.ids.shape[1]
        tokens, states = vilt.encoder(self._embed(batch, keep), reduction, output_hidden_states=True)
        shown, asked, found = (states[max(1, self.depth * part // 6)] for part in (2, 4, 5))
        words = expand_text(vilt.layernorm(tokens.states), tokens, text)[:, :text]
        asked_for, alike = (None, None) if reduction.reducers else self._to_reducers(states, tokens)
        pooled = vilt.pooler(words)
        return Seen(shown[:, text + 1 :], asked[:, text + 1 :], found[:, 0], words, pooled, asked_for, alike)

    def _to_reducers(self, states: Sequence[Tensor], tokens: Tokens) -> tuple[Tensor | None, Tensor | None]:
        """What the layers that reduce go by, with a gradient: saliency and the words' likeness; see `Seen`."""
        shares, alike, text = [], [], tokens.text_length
        for index in (index for index in REDUCING if index < self.depth):
            layer, state = self.model.vilt.encoder.layer[index], states[index]
            attention, x = layer.attention.attention, layer.layernorm_before(state)
            heads = (attention.num_attention_heads, attention.attention_head_size)
            query, key = (
                linear(part).unflatten(2, heads).transpose(1, 2)
                for linear, part in ((attention.query, x[:, :text]), (attention.key, x))
            )
            rows = attention_probabilities(query, key, tokens.bias)[..., text:]
            saliency = text_saliency(rows, tokens.mask[:, :text])[:, 1:]
            shares.append(saliency / saliency.sum(1, keepdim=True))
            alike.append(likeness(key[:, :, :text]))
        return (torch.stack(shares, 1), torch.stack(alike, 1)) if shares else (None, None)

    def _embed(self, batch: Batch, keep: Tensor | None) -> Tokens:
        embeddings = self.model.vilt.embeddings
        size, (height, width) = self.model.config.patch_size, batch.images.shape[1:3]
        pixels = batch.images.unflatten(1, (height // size, size)).unflatten(3, (width // size, size))
        patches = pixels.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)
        places = embeddings.position_embeddings[0, 1:]
        if keep is not None:
            patches = patches.gather(1, keep[:, :, None].expand(-1, -1, patches.shape[2]))
            places = places[keep]
        projection = embeddings.patch_embeddings.projection
        image = F.linear(patches.float() / 127.5 - 1, projection.weight.flatten(1), projection.bias) + places
        first = (embeddings.cls_token[0] + embeddings.position_embeddings[0, :1]).expand(len(image), 1, -1)
        modality = embeddings.token_type_embeddings.weight
        text = embeddings.text_embeddings(input_ids=batch.ids)
        states = torch.cat([text + modality[0], torch.cat([first, image], 1) + modality[1]], 1)
        mask = torch.cat([batch.ids != 0, batch.ids.new_ones(image.shape[0], image.shape[1] + 1).bool()], 1)
        T = batch.ids.shape[1]
        origin = partial(slots_at_start, mask[:, :T], mask[:, T:], False)
        return Tokens((states,), mask.float(), (attention_bias(mask),), T, origin)

    def grown(self, depth: int, places: tuple[int, ...]) -> ViltTrainee:
        """A deeper model that computes the same, for its new layers add nothing yet.

        Args:
            depth: layers of the new model.
            places: where this model's layers stand in it.
        """
        config = type(self.model.config).from_dict(self.model.config.to_dict() | {"num_hidden_layers": depth})
        new = ViltTrainee(config)
        for name, module in new.named_children():
            if name != "model":
                module.load_state_dict(getattr(self, name).state_dict())
        layers = new.model.vilt.encoder.layer
        new.model.vilt.encoder.layer, kept = nn.ModuleList(), self.model.vilt.encoder.layer
        own = self.model.state_dict()
        new.model.load_state_dict({k: v for k, v in own.items() if ".encoder.layer." not in k})
        for index, layer in enumerate(layers):
            if index in places:
                layer.load_state_dict(kept[places.index(index)].state_dict())
            else:
                for output in (layer.attention.output.dense, layer.output.dense):
                    nn.init.zeros_(output.weight)
                    nn.init.zeros_(output.bias)
        new.model.vilt.encoder.layer = layers
        return new
