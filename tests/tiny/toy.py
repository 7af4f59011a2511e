"""A third model family: a model file, and its adapter. One entry in BACKBONES is all that it takes beside them."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, ViltImageProcessorPil, ViltProcessor
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from pumer.backbones.base import Backbone
from pumer.backbones.layers import SplitLayer, attend, run_layers
from pumer.backbones.streams import expand_text, grid_cells, layer_bytes, one_stream

# ---------------------------------------------------------------- the model file


class ToyConfig(PreTrainedConfig):
    model_type = "toy"

    hidden_size: int = 16
    intermediate_size: int = 32
    num_hidden_layers: int = 3
    num_attention_heads: int = 2
    image_size: int = 48
    patch_size: int = 8
    num_channels: int = 3
    vocab_size: int = 50
    max_position_embeddings: int = 16
    initializer_range: float = 0.2


class ToyAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.head_size = config.hidden_size // config.num_attention_heads
        self.query, self.key, self.value = (nn.Linear(config.hidden_size, config.hidden_size) for _ in range(3))

    def forward(self, states, bias):
        query, key, value = (
            part(states).unflatten(2, (-1, self.head_size)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        return nn.functional.scaled_dot_product_attention(query, key, value, bias).transpose(1, 2).flatten(2)


class ToyLayer(GradientCheckpointingLayer):
    def __init__(self, config):
        super().__init__()
        self.attention = ToyAttention(config)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.inner = nn.Linear(config.hidden_size, config.intermediate_size)
        self.outer = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, states, bias):
        states = states + self.attention(states, bias)
        return states + self.outer(self.inner(self.norm(states)).relu())


class ToyEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList([ToyLayer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, states, bias):
        for layer in self.layers:
            states = layer(states, bias)
        return states


class ToyPreTrainedModel(PreTrainedModel):
    config_class = ToyConfig
    base_model_prefix = "toy"
    supports_gradient_checkpointing = True


class ToyModel(ToyPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.patches = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, config.patch_size)
        self.encoder = ToyEncoder(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def embedded(self, input_ids, pixel_values):
        image = self.patches(pixel_values).flatten(2).transpose(1, 2)
        return self.words(input_ids), torch.cat([image.mean(dim=1, keepdim=True), image], dim=1)

    def forward(self, input_ids, pixel_values, attention_mask=None, **kwargs):
        text, image = self.embedded(input_ids, pixel_values)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = torch.cat([mask, mask.new_ones(image.shape[:2])], dim=1)[:, None, None] > 0
        states = self.encoder(torch.cat([text, image], dim=1), mask)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=states[:, 0])


class ToyForQuestionAnswering(ToyPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.toy, self.classifier = ToyModel(config), nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, **inputs: Any):
        return SequenceClassifierOutput(logits=self.classifier(self.toy(**inputs).pooler_output))


AutoConfig.register("toy", ToyConfig)


# ---------------------------------------------------------------- the adapter


class FastToyAttention(ToyAttention):
    def forward(self, states, bias, call=None):
        projected = self.query(states), self.key(states), self.value(states)
        return attend(*projected, self.head_size, bias, 0.0, call)


class ReducedToyLayer(SplitLayer, ToyLayer):
    def forward(self, states, bias, call=None):
        return self._run(call, states, bias)

    def _attend(self, states: Tensor, *inputs: Any) -> Tensor:
        return states + self.attention(states, *inputs)

    def _feed_forward(self, states: Tensor) -> Tensor:
        return states + self.outer(self.inner(self.norm(states)).relu())


class ReducedToyEncoder(ToyEncoder):
    def forward(self, tokens, reduction):
        return (run_layers(self.layers, "fusion", tokens, reduction),)


class ReducedToyModel(ToyModel):
    def forward(self, input_ids, pixel_values, attention_mask=None, **kwargs):
        text, image = self.embedded(input_ids, pixel_values)
        reduction, real = self.pumer_reduction, torch.ones(image.shape[:2], dtype=torch.bool, device=image.device)
        tokens = one_stream(text, attention_mask, image, real, reduction.reduces("fusion"))
        side = self.config.image_size // self.config.patch_size
        reduction.begin(tokens, grid_cells(side, side, image))
        (tokens,) = self.encoder(tokens, reduction)
        states, pooled = tokens.states, tokens.states[:, 0]
        if reduction.expands and len(tokens.history) > 0:
            states = expand_text(states, tokens, input_ids.shape[1])
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)


TOY = Backbone(
    name="toy",
    root=ToyModel,
    classes={
        ToyModel: ReducedToyModel,
        ToyEncoder: ReducedToyEncoder,
        ToyLayer: ReducedToyLayer,
        ToyAttention: FastToyAttention,
    },
    layers=lambda model: {"fusion": model.encoder.layers},
    encoders=lambda model: {"fusion": model.encoder},
    embedders=lambda model: [model.words, model.patches],
    widths=lambda model: {"fusion": model.config.hidden_size},
    tokens=lambda model: {"fusion": model.config.max_position_embeddings + 37},
    example_bytes=lambda model: layer_bytes(53, 16, 32, model.dtype),
    heads={"question_answering": ToyForQuestionAnswering},
    image_processor=ViltImageProcessorPil,
    processor=ViltProcessor,
    presets={"toy": lambda: ToyForQuestionAnswering(ToyConfig())},
    encoder_parameters=("toy.words.", "toy.patches."),
)
