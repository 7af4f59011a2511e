"""METER: text and image in two streams; reduction after the text-to-image cross-attention, and in the vision encoder.

What the patched classes change:

- patches projected by one matrix product;
- attention hands out the keys and the text-to-image probabilities that a reducer asks for, the latter computed apart;
- cross-modal layers 0, 2, 4, ... are the text layers of the pairs. A reducer there decides after their cross-attention
  to the image, and before their feed-forward part; the image tokens it leaves go into the image layer of the same pair;
- the vision encoder's layers may merge tokens between attention and feed-forward. Sizes and sources are carried into
  the cross-modal layers, through an encoding that is kept for later, too.

Weights, state dict and class names stay as they are.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer, CLIPVisionModel

from pumer.backbones.base import Backbone, LayerCues, Reduction, Shown
from pumer.backbones.streams import PatchProjection, autocast_off, expand_text, text_block
from pumer.errors import InputError
from pumer.functional import attention
from pumer.models.meter.modeling_meter import (
    MeterAttention,
    MeterCrossModalEncoder,
    MeterCrossModalLayer,
    MeterEncoding,
    MeterModel,
    MeterModelOutput,
)
from pumer.reducers.base import CLS_ROW, KEYS, STATES, Place, Reducer
from pumer.tokens import Block, Cues, Decision, Tokens, attention_bias


class FastVisionAttention(CLIPAttention):
    """Fused attention over the image that hands out its keys."""

    def forward(  # noqa: D102
        self, hidden_states: Tensor, bias: Tensor | None = None, wanted: LayerCues | None = None
    ) -> tuple[Tensor, Shown]:
        shape = (*hidden_states.shape[:-1], self.num_heads, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        context = attention(query, key, value, bias, self.dropout if self.training else 0.0)
        shown = Shown() if wanted is None else wanted.collect(query, key, bias, query[:, :, :1])
        return self.out_proj(context.transpose(1, 2).flatten(2)), shown


class ReducedVisionLayer(CLIPEncoderLayer):
    """A layer that can be run in two parts, so that tokens are merged between them."""

    def forward(  # noqa: D102
        self,
        hidden_states: Tensor,
        bias: Tensor | None = None,
        wanted: LayerCues | None = None,
        part: str = "whole",
    ) -> Any:
        if part == "feed_forward":
            return hidden_states + self.mlp(self.layer_norm2(hidden_states))
        attended, shown = self.self_attn(self.layer_norm1(hidden_states), bias, wanted)
        hidden_states = hidden_states + attended
        if part == "attention":
            return hidden_states, shown
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class ReducedVisionModel(CLIPVisionModel):
    """The vision encoder up to its last layer, with a reduction inside the layers that have a reducer."""

    def forward(  # noqa: D102
        self, pixel_values: Tensor, reduction: Reduction
    ) -> tuple[Tokens, tuple[tuple[Place, Decision], ...]]:
        tokens, decisions = image_stream(self.pre_layrnorm(self.embeddings(pixel_values))), []
        reducers = reduction.active_reducers("vision")
        for index, layer in enumerate(self.encoder.layers):
            reducer = reducers.get(index)
            if reducer is None:
                tokens = tokens.with_states(layer(tokens.states, tokens.bias))
                continue
            wanted = LayerCues(reduction.config, reducer.needs & {KEYS, CLS_ROW})
            states, shown = layer(tokens.states, tokens.bias, wanted, part="attention")
            with autocast_off(states.device):
                tokens = tokens.with_states(states)
                image = _block(tokens, shown.keys, reducer)
                cues = Cues(_no_text(image), image, cls_row=shown.cls_row)
                _, decision = _pair(reduction.decide(reducer, cues))
                tokens = tokens.reduce(decision)
            reduction.record(("vision", index), decision, tokens)
            decisions.append((("vision", index), decision))
            tokens = tokens.with_states(layer(tokens.states, part="feed_forward"))
        return tokens, tuple(decisions)


def image_stream(states: Tensor) -> Tokens:
    """Image tokens ``(B, 1 + V, D)``, all real, each for itself."""
    mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    slot = torch.arange(states.shape[1], device=states.device).expand(mask.shape)
    return Tokens(states, mask, mask.to(torch.float32), None, slot, 0)


def _block(tokens: Tokens, keys: Tensor | None, reducer: Reducer) -> Block:
    return Block(tokens.mask, tokens.bias, keys, tokens.states if STATES in reducer.needs else None)


def _no_text(image: Block) -> Block:
    return Block(image.mask[:, :0], None, None if image.keys is None else image.keys[:, :, :0])


def _pair(decided: tuple[Decision, Decision] | Decision) -> tuple[Decision, Decision]:
    """Decisions about text and image; in two streams there is no single one."""
    assert not isinstance(decided, Decision), "a reducer made one decision about two streams"
    return decided


class FastMeterAttention(MeterAttention):
    """Fused attention that hands out the cues a reducer needs."""

    def forward(  # type: ignore[override]  # noqa: D102
        self, hidden_states: Tensor, context: Tensor | None, bias: Tensor | None, wanted: LayerCues
    ) -> tuple[Tensor, Shown]:
        shape = (*hidden_states.shape[:-1], self.num_attention_heads, self.attention_head_size)
        query = self.query(hidden_states).view(shape).transpose(1, 2)
        source = hidden_states if context is None else context
        shape = (*source.shape[:-1], self.num_attention_heads, self.attention_head_size)
        key = self.key(source).view(shape).transpose(1, 2)
        value = self.value(source).view(shape).transpose(1, 2)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        attended = wanted.config.attend(query, key, value, bias, dropout)
        shown = wanted.collect(query, key, bias, self._cls_query(source) if CLS_ROW in wanted.needs else None)
        attended = self.dropout(self.dense(attended.transpose(1, 2).flatten(2)))
        return self.layer_norm(attended + hidden_states), shown

    def _cls_query(self, source: Tensor) -> Tensor:
        """What the image's [CLS] would ask for in this layer: ``(B, H, 1, Dh)``."""
        with torch.no_grad():
            query: Tensor = self.query(source[:, :1])
            return query.unflatten(2, (self.num_attention_heads, self.attention_head_size)).transpose(1, 2)


class ReducedMeterLayer(MeterCrossModalLayer):
    """A layer that can be run in two parts, so that tokens are reduced between them."""

    def forward(  # noqa: D102
        self,
        hidden_states: Tensor,
        context: Tensor | None = None,
        bias: Tensor | None = None,
        context_bias: Tensor | None = None,
        wanted: LayerCues | None = None,
        part: str = "whole",
    ) -> Any:
        if part == "feed_forward":
            return self._feed_forward(hidden_states)
        assert wanted is not None  # for the type checker: only the feed-forward part needs none
        itself = LayerCues(wanted.config, wanted.needs & {KEYS})
        hidden_states, own = self.attention(hidden_states, None, bias, itself)
        hidden_states, shown = self.cross_attention(hidden_states, context, context_bias, wanted)
        if part == "attention":
            return hidden_states, own, shown
        return self._feed_forward(hidden_states)

    def _feed_forward(self, hidden_states: Tensor) -> Tensor:
        inner = self.output(self.act(self.intermediate(hidden_states)))
        return self.layer_norm(self.dropout(inner) + hidden_states)


class ReducedMeterEncoder(MeterCrossModalEncoder):
    """The loop over pairs, with a reduction inside the text layers that have a reducer."""

    def forward(  # type: ignore[override]  # noqa: D102
        self, text: Tokens, image: Tokens, reduction: Reduction, output_hidden_states: bool = False
    ) -> tuple[Tokens, Tokens, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        reducers, plain = reduction.active_reducers("fusion"), LayerCues(reduction.config)
        states = [(text.states, image.states)]
        for pair, (text_layer, image_layer) in enumerate(zip(self.text_layers, self.image_layers, strict=True)):
            entered, reducer = text, reducers.get(2 * pair)
            if reducer is None:
                text = text.with_states(text_layer(text.states, image.states, text.bias, image.bias, plain))
            else:
                text, image = _reduce(text, image, text_layer, 2 * pair, reducer, reduction)
                text = text.with_states(text_layer(text.states, part="feed_forward"))
            seen = entered if self.config.cross_modal_order == "parallel" else text
            image = image.with_states(image_layer(image.states, seen.states, image.bias, seen.bias, plain))
            states.append((text.states, image.states))
        if not output_hidden_states:
            return text, image, None, None
        text_states, image_states = zip(*states, strict=True)
        return text, image, text_states, image_states


def _reduce(
    text: Tokens, image: Tokens, layer: nn.Module, index: int, reducer: Reducer, reduction: Reduction
) -> tuple[Tokens, Tokens]:
    """Run the attention part of a text layer and apply its reducer's decisions to both streams."""
    wanted = LayerCues(reduction.config, reducer.needs)
    states, own, shown = layer(text.states, image.states, text.bias, image.bias, wanted, part="attention")
    with autocast_off(states.device):
        text = text.with_states(states)
        blocks = _block(text, own.keys, reducer), _block(image, shown.keys, reducer)
        about_text, about_image = _pair(reduction.decide(reducer, Cues(*blocks, shown.text_rows, shown.cls_row)))
        text, image = text.reduce(about_text), image.reduce(about_image)
    if reduction.recorder is not None:
        reduction.record(("fusion", index), Decision.join(about_text, about_image), Tokens.join(text, image))
    return text, image


class ReducedMeterModel(MeterModel):
    """Carries tokens from the encoders through the pairs, and gives METER's outputs back."""

    pumer_reduction: Reduction

    def encode_image(self, pixel_values: Tensor) -> MeterEncoding:
        """As `MeterModel.encode_image`; merged by the steps for the vision encoder, if there are any.

        Args:
            pixel_values: ``(B, C, H, W)``.

        Returns:
            The encoding; ``size`` and ``decisions`` tell what was merged.
        """
        self.check_pixels(pixel_values)
        tokens, decisions = self.vision_model(pixel_values, self.pumer_reduction)
        states = self.image_projection(self.vision_model.post_layernorm(tokens.states))
        size = tokens.size if decisions else None
        return MeterEncoding(states, tokens.mask, size, decisions, self.patch_grid)

    def fuse(
        self,
        text: MeterEncoding,
        image: MeterEncoding,
        image_token_type_idx: int = 1,
        output_hidden_states: bool = False,
    ) -> MeterModelOutput:
        """As `MeterModel.fuse`; tokens are removed on the way.

        Returns:
            Text states at their T positions (a merged word has the state of the token that holds it), image states of
            the tokens that are left.
        """
        self.check_pair(text, image, image_token_type_idx)
        reduction = self.pumer_reduction
        self._check_buffer(image)
        kinds = self.modality_embeddings(torch.tensor([0, image_token_type_idx], device=text.states.device))
        patches = image.states + kinds[1]
        text_tokens = text_stream(text.states + kinds[0], text.mask, bool(reduction.active_reducers("fusion")))
        image_tokens = _image_tokens(patches, image)
        if reduction.recorder is not None:
            reduction.begin(Tokens.join(text_tokens, image_tokens), self._cells(image), image.decisions)
        text_tokens, image_tokens, text_states, image_states = self.encoder(
            text_tokens, image_tokens, reduction, output_hidden_states
        )
        words = text_tokens.states
        if reduction.active_reducers("fusion"):
            words = expand_text(words, text_tokens, text.mask.shape[1])
        pooled = torch.cat([self.text_pooler(text_tokens.states), self.image_pooler(image_tokens.states)], dim=-1)
        return MeterModelOutput(
            text_last_hidden_state=words,
            image_last_hidden_state=image_tokens.states,
            pooler_output=pooled,
            text_hidden_states=text_states,
            image_hidden_states=image_states,
        )

    def _check_buffer(self, image: MeterEncoding) -> None:
        most, (rows, columns) = self.pumer_reduction.config.max_image_tokens, self.patch_grid
        if most is not None and most < rows * columns:
            raise InputError(
                f"an image has {rows * columns} patches but max_image_tokens is {most}; raise it, or leave it out: "
                "METER's images all have one size"
            )

    def _cells(self, image: MeterEncoding) -> Tensor:
        """``(B, 1 + V, 2)``: row and column of each patch, -1 for [CLS]."""
        rows, columns = image.grid or self.patch_grid
        cell = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        cell = torch.cat([cell.new_full((1, 2), -1), cell])
        return cell.to(image.states.device).expand(len(image.states), -1, -1)


def text_stream(states: Tensor, mask: Tensor, reduced: bool) -> Tokens:
    """Text tokens ``(B, T, D)`` with ``mask (B, T)``; compact if they are going to be reduced."""
    states, mask, source = text_block(states, mask, reduced)
    size = mask.to(torch.float32)
    return Tokens(states, mask, size, attention_bias(mask, size, proportional=False), source, mask.shape[1])


def _image_tokens(states: Tensor, image: MeterEncoding) -> Tokens:
    """The stream that an encoding starts, with what the vision encoder merged."""
    if image.size is None:
        return image_stream(states)
    _, last = image.decisions[-1]
    first = image.decisions[0][1].destination
    source = torch.arange(first.shape[1], device=first.device).expand(first.shape)
    for _, decision in image.decisions:
        source = decision.trace(source)
    bias = attention_bias(image.mask, image.size, last.proportional) if last.bias is None else last.bias
    return Tokens(states, image.mask, image.size, bias, source, 0)


def _unfit(stack: str, layer: int) -> str | None:
    """Why a layer cannot reduce: the odd layers are those of the image."""
    if stack == "vision" or layer % 2 == 0:
        return None
    return f"it is the image layer of pair {layer // 2}; the text layer of pair p is 2p: give {layer - 1}"


METER = Backbone(
    name="meter",
    root=MeterModel,
    classes={
        MeterModel: ReducedMeterModel,
        nn.Conv2d: PatchProjection,
        CLIPVisionModel: ReducedVisionModel,
        CLIPEncoderLayer: ReducedVisionLayer,
        CLIPAttention: FastVisionAttention,
        MeterCrossModalEncoder: ReducedMeterEncoder,
        MeterCrossModalLayer: ReducedMeterLayer,
        MeterAttention: FastMeterAttention,
    },
    layers=lambda model: {
        "vision": model.vision_model.encoder.layers,
        "fusion": [
            layer for pair in zip(model.encoder.text_layers, model.encoder.image_layers, strict=True) for layer in pair
        ],
    },
    encoders=lambda model: {"vision": model.vision_model, "fusion": model.encoder},
    widths=lambda model: {"fusion": model.config.hidden_size, "vision": model.config.vision_config.hidden_size},
    tokens=lambda model: dict.fromkeys(("fusion", "vision"), 1 + model.patch_grid[0] * model.patch_grid[1]),
    embedders=lambda model: [model.text_model, model.vision_model],
    unfit=_unfit,
)
