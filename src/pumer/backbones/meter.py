"""METER: text and image in two streams; reduction after the text-to-image cross-attention, and in the vision encoder.

What the patched classes change:

- patches projected by one matrix product;
- the text encoder's layers call the fused attention directly, and the vision encoder's activation is one pass;
- attention hands out the keys and the text-to-image probabilities that a reducer asks for, the latter computed apart;
- cross-modal layers 0, 2, 4, ... are the text layers of the pairs. A reducer there decides after their cross-attention
  to the image, and before their feed-forward part; the image tokens it leaves go into the image layer of the same pair;
- the vision encoder's layers may merge tokens between attention and feed-forward. Sizes and sources are carried into
  the cross-modal layers, through an encoding that is kept for later, too.

Weights, state dict and class names stay as they are.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer, CLIPVisionModel
from transformers.models.roberta.modeling_roberta import RobertaLayer, RobertaSelfAttention

from pumer import kernels
from pumer.backbones.base import Backbone, Between, CueRequest, LayerInParts, Reduction
from pumer.backbones.streams import (
    PatchProjection,
    attention_dtype,
    expand_text,
    layer_bytes,
    slots_at_start,
    text_block,
)
from pumer.models.meter.heads_meter import (
    MeterForImageAndTextRetrieval,
    MeterForImagesAndTextClassification,
    MeterForQuestionAnswering,
)
from pumer.models.meter.modeling_meter import (
    MeterAttention,
    MeterCrossModalEncoder,
    MeterCrossModalLayer,
    MeterEncoding,
    MeterModel,
    MeterModelOutput,
)
from pumer.reducers.base import CLS_ROW, KEYS, STATES, Place, Reducer, attention
from pumer.reducers.cues import Cues
from pumer.reducers.tables import integers
from pumer.tokens import Decision, Tokens, attention_bias
from pumer.utils.errors import InputError


class FastVisionAttention(CLIPAttention):
    """Fused attention over the image that hands out its keys."""

    def forward(  # noqa: D102
        self, hidden_states: Tensor, bias: Tensor | None = None, wanted: CueRequest | None = None
    ) -> tuple[Tensor, None]:
        shape = (*hidden_states.shape[:-1], self.num_heads, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        context = attention(query, key, value, bias, self.dropout if self.training else 0.0)
        if wanted is not None:
            wanted.answer(query, key, lambda: query[:, :, :1])
        return self.out_proj(context.transpose(1, 2).flatten(2)), None


class FastTextAttention(RobertaSelfAttention):
    """Fused attention over the words, without transformers' choice among attention functions at every call."""

    def forward(  # noqa: D102
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        shape = (*hidden_states.shape[:-1], self.num_attention_heads, self.attention_head_size)
        query = self.query(hidden_states).view(shape).transpose(1, 2)
        key = self.key(hidden_states).view(shape).transpose(1, 2)
        value = self.value(hidden_states).view(shape).transpose(1, 2)
        context = attention(query, key, value, attention_mask, self.dropout.p if self.training else 0.0)
        return context.transpose(1, 2).flatten(2), None


class FastTextLayer(RobertaLayer):
    """A layer of the text encoder that does not inspect its own signature at every call."""

    def forward(  # noqa: D102
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        states: Tensor = self.feed_forward_chunk(self.attention(hidden_states, attention_mask)[0])
        return states


class FastQuickGELU(QuickGELUActivation):
    """The activation of the vision encoder, in inference by one kernel on a GPU, and with one buffer elsewhere."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: D102
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            y: Tensor = super().forward(input)
            return y
        if kernels.usable(input):
            return kernels.quick_gelu(input)
        return (1.702 * input).sigmoid_().mul_(input)


class ReducedVisionLayer(LayerInParts, CLIPEncoderLayer):
    """A layer in which tokens may be merged between attention and feed-forward."""

    def forward(  # noqa: D102
        self,
        hidden_states: Tensor,
        bias: Tensor | None = None,
        wanted: CueRequest | None = None,
        between: Between | None = None,
    ) -> Tensor:
        if between is not None:
            return self.in_parts(between, self._feed_forward, self._attend, hidden_states, bias, wanted)
        return self._feed_forward(self._attend(hidden_states, bias, wanted))

    def _attend(self, hidden_states: Tensor, bias: Tensor | None, wanted: CueRequest | None) -> Tensor:
        return hidden_states + self.self_attn(self.layer_norm1(hidden_states), bias, wanted)[0]

    def _feed_forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class ReducedVisionModel(CLIPVisionModel):
    """The vision encoder up to its last layer, with a reduction inside the layers that have a reducer."""

    def forward(  # noqa: D102
        self, pixel_values: Tensor, reduction: Reduction
    ) -> tuple[Tokens, tuple[tuple[Place, Decision], ...]]:
        tokens, decisions = image_stream(self.pre_layrnorm(self.embeddings(pixel_values))), []
        reducers = reduction.active_reducers("vision")
        for index, layer in enumerate(self.encoder.layers):
            reducer, bias = reducers.get(index), tokens.biases[0]
            if reducer is None:
                tokens = tokens.with_streams(layer(tokens.states, bias))
                continue
            tokens, decision = _reduced_image(tokens, layer, index, reducer, reduction)
            decisions.append((("vision", index), decision))
        return tokens, tuple(decisions)


def _reduced_image(
    tokens: Tokens, layer: nn.Module, index: int, reducer: Reducer, reduction: Reduction
) -> tuple[Tokens, Decision]:
    """Run a layer that reduces; what its reducer has seen is freed in the end."""
    wanted = CueRequest(reduction.config, reducer.needs & {KEYS, CLS_ROW, STATES})
    between = Between(reduction, ("vision", index), tokens, partial(_vision_cues, wanted, tokens.biases[0]))
    states = layer(tokens.states, tokens.biases[0], wanted, between=between)
    return between.after.with_streams(states), between.decision


def _vision_cues(wanted: CueRequest, bias: Tensor | None, tokens: Tokens) -> Cues:
    """What attention over the image shows to a reducer."""
    _, key, cls_query = wanted.take()
    return Cues(tokens, key, None, None, cls_query, bias, wanted.config.probabilities)


def image_stream(states: Tensor) -> Tokens:
    """Image tokens ``(B, 1 + V, D)``, all real, each for itself."""
    (B, V), size = states.shape[:2], torch.ones_like(states[:, :, 0], dtype=torch.float32)
    counts = integers(states.device, 0, V).expand(B, 2)
    return Tokens((states,), size, (None,), 0, partial(_start, size[:, :0] > 0, V, False), counts=counts)


class FastMeterAttention(MeterAttention):
    """Fused attention that hands out the cues a reducer needs."""

    def forward(  # type: ignore[override]  # noqa: D102
        self, hidden_states: Tensor, context: Tensor | None, bias: Tensor | None, wanted: CueRequest
    ) -> Tensor:
        shape = (*hidden_states.shape[:-1], self.num_attention_heads, self.attention_head_size)
        query = self.query(hidden_states).view(shape).transpose(1, 2)
        source = hidden_states if context is None else context
        shape = (*source.shape[:-1], self.num_attention_heads, self.attention_head_size)
        key = self.key(source).view(shape).transpose(1, 2)
        value = self.value(source).view(shape).transpose(1, 2)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        attended = wanted.config.attend(query, key, value, bias, dropout)
        wanted.answer(query, key, lambda: self._cls_query(source))
        attended = self.dense(attended.transpose(1, 2).flatten(2))
        if self.training:
            attended = self.dropout(attended)
        return self.layer_norm(attended + hidden_states)

    def _cls_query(self, source: Tensor) -> Tensor:
        """What the image's [CLS] would ask for in this layer: ``(B, H, 1, Dh)``."""
        query: Tensor = self.query(source[:, :1])
        return query.unflatten(2, (self.num_attention_heads, self.attention_head_size)).transpose(1, 2)


class ReducedMeterLayer(LayerInParts, MeterCrossModalLayer):
    """A layer in which tokens may be reduced between attention and feed-forward."""

    def forward(  # type: ignore[override]  # noqa: D102
        self,
        hidden_states: Tensor,
        context: Tensor,
        bias: Tensor | None,
        context_bias: Tensor | None,
        wanted: tuple[CueRequest, CueRequest],
        between: Between | None = None,
    ) -> Tensor:
        inputs = hidden_states, context, bias, context_bias, wanted
        if between is not None:
            return self.in_parts(between, self._feed_forward, self._attend, *inputs)
        return self._feed_forward(self._attend(*inputs))

    def _attend(
        self,
        hidden_states: Tensor,
        context: Tensor,
        bias: Tensor | None,
        context_bias: Tensor | None,
        wanted: tuple[CueRequest, CueRequest],
    ) -> Tensor:
        hidden_states = self.attention(hidden_states, None, bias, wanted[0])
        return self.cross_attention(hidden_states, context, context_bias, wanted[1])

    def _feed_forward(self, hidden_states: Tensor) -> Tensor:
        inner = self.output(self.act(self.intermediate(hidden_states)))
        if self.training:
            inner = self.dropout(inner)
        return self.layer_norm(inner + hidden_states)


class ReducedMeterEncoder(MeterCrossModalEncoder):
    """The loop over pairs, with a reduction inside the text layers that have a reducer."""

    def forward(  # type: ignore[override]  # noqa: D102
        self, tokens: Tokens, reduction: Reduction, output_hidden_states: bool = False, start: int = 0
    ) -> tuple[Tokens, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        states: list[tuple[Tensor, ...]] | None = [] if output_hidden_states else None
        tokens = self.run(tokens, reduction, start, len(self.text_layers), states)
        if states is None:
            return tokens, None, None
        text_states, image_states = zip(*states, tokens.streams, strict=True)
        return tokens, text_states, image_states

    def run(
        self,
        tokens: Tokens,
        reduction: Reduction,
        start: int,
        stop: int,
        states: list[tuple[Tensor, ...]] | None = None,
    ) -> Tokens:
        """Run the pairs from ``start`` up to ``stop``; the states that enter each are appended to a list, if given."""
        reducers, plain = reduction.active_reducers("fusion"), (CueRequest(reduction.config),) * 2
        sequential = self.config.cross_modal_order == "sequential"
        (words, patches), (bias, image_bias) = tokens.streams, tokens.biases
        for pair in range(start, stop):
            text_layer, image_layer = self.text_layers[pair], self.image_layers[pair]
            if states is not None:
                states.append((words, patches))
            seen, seen_bias, reducer = words, bias, reducers.get(2 * pair)
            if reducer is None:
                words = text_layer(words, patches, bias, image_bias, plain)
            else:
                tokens = _reduced(tokens.with_streams(words, patches), text_layer, 2 * pair, reducer, reduction)
                (words, patches), (bias, image_bias) = tokens.streams, tokens.biases
            if sequential:
                seen, seen_bias = words, bias
            patches = image_layer(patches, seen, image_bias, seen_bias, plain)
        return tokens.with_streams(words, patches)


def _reduced(tokens: Tokens, layer: nn.Module, index: int, reducer: Reducer, reduction: Reduction) -> Tokens:
    """Run a text layer that reduces both streams; what its reducer has seen is freed in the end."""
    (words, patches), (bias, image_bias) = tokens.streams, tokens.biases
    wanted = CueRequest(reduction.config, reducer.needs & {KEYS}), CueRequest(reduction.config, reducer.needs)
    between = Between(reduction, ("fusion", index), tokens, partial(_cues, wanted, image_bias))
    words = layer(words, patches, bias, image_bias, wanted, between=between)
    return between.after.with_streams(words, between.after.streams[1])


def _cues(wanted: tuple[CueRequest, CueRequest], bias: Tensor | None, tokens: Tokens) -> Cues:
    """What a text layer's attention to itself and to the image shows to its reducer."""
    own, image = (request.take() for request in wanted)
    probabilities = wanted[1].config.probabilities
    return Cues(tokens, image.key, own.key, image.query, image.cls_query, bias, probabilities)


class ReducedMeterModel(MeterModel):
    """Carries tokens from the encoders through the pairs, and gives METER's outputs back."""

    pumer_reduction: Reduction
    encoder: ReducedMeterEncoder

    def encode_image(self, pixel_values: Tensor) -> MeterEncoding:
        """As `MeterModel.encode_image`; merged by the steps for the vision encoder, if there are any.

        Args:
            pixel_values: ``(B, C, H, W)``.

        Returns:
            The encoding; ``size`` and ``decisions`` tell what was merged.
        """
        self.check_pixels(pixel_values)
        return MeterEncoding.of_slices(
            [self._encoded(pixel_values[rows]) for rows in self.pumer_reduction.slices(pixel_values.shape[0])]
        )

    def _encoded(self, pixel_values: Tensor) -> MeterEncoding:
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
        batch = text.states.shape[0]
        slices = [slice(0, batch)] if output_hidden_states else reduction.slices(batch)
        start = 0
        if len(slices) == 1:
            tokens = self._joined(text, image, image_token_type_idx)
        else:  # the pairs before the last reduction, where most of the memory goes
            start = 1 + max(reduction.active_reducers("fusion"), default=2 * len(self.encoder.text_layers) - 1) // 2
            parts = []
            for rows in slices:
                part = self._joined(text.part(rows), image.part(rows), image_token_type_idx)
                parts.append(self.encoder.run(part, reduction, 0, start))
            tokens = Tokens.of_slices(parts)
            del parts, part
        tokens, text_states, image_states = self.encoder(tokens, reduction, output_hidden_states, start)
        words, patches = tokens.streams
        pooled = torch.cat([self.text_pooler(words), self.image_pooler(patches)], dim=-1)
        if reduction.expands and reduction.reduces("fusion"):
            words = expand_text(words, tokens, text.mask.shape[1])
        return MeterModelOutput(
            text_last_hidden_state=words,
            image_last_hidden_state=patches,
            pooler_output=pooled,
            text_hidden_states=text_states,
            image_hidden_states=image_states,
        )

    def _joined(self, text: MeterEncoding, image: MeterEncoding, image_type: int) -> Tokens:
        """The two streams that enter the first pair."""
        reduction = self.pumer_reduction
        kinds = self.modality_embeddings(integers(text.states.device, 0, image_type))
        reduces = reduction.reduces("fusion")
        tokens = joined(text.states + kinds[0], text.mask, image.states + kinds[1], reduces, image)
        if reduction.recorder is not None:
            reduction.begin(tokens, self._cells(image), image.decisions)
        return tokens

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


def joined(words: Tensor, mask: Tensor, patches: Tensor, reduced: bool, image: MeterEncoding | None = None) -> Tokens:
    """Two streams, as they enter the cross-modal layers.

    Args:
        words: ``(B, T, D)``.
        mask: ``(B, T)`` bool.
        patches: ``(B, 1 + V, D)``.
        reduced: Whether anything is going to be reduced: real words then come first.
        image: What the vision encoder made of the image, if that may have merged tokens.
    """
    given, (words, mask, counts) = mask, text_block(words, mask, reduced)
    T, dtype = mask.shape[1], attention_dtype(words)
    size, bias = torch.ones_like(patches[:, :, 0], dtype=torch.float32), None
    history: tuple[tuple[Decision, int], ...] = ()
    patch_slots = patches.shape[1]
    if image is not None and image.size is not None:
        _, last = image.decisions[-1]
        size, bias = image.size, last.bias
        if bias is None:
            bias = (size.log()[:, None, None] if last.proportional else attention_bias(image.mask)).to(dtype)
        history = tuple((decision, T) for _, decision in image.decisions)
        patch_slots = image.decisions[0][1].tokens
        counts = None if counts is None else counts + last.lengths
    elif counts is not None:
        counts = counts + integers(words.device, 0, patch_slots)
    return Tokens(
        (words, patches),
        torch.cat([mask.to(torch.float32), size], dim=1),
        (attention_bias(mask, dtype), bias),
        T,
        partial(_start, given, patch_slots, reduced),
        history,
        counts,
    )


def _start(text_mask: Tensor, patch_slots: int, reduced: bool) -> Tensor:
    """See `slots_at_start`; all image tokens are real."""
    real = torch.ones(text_mask.shape[0], patch_slots, dtype=torch.bool, device=text_mask.device)
    return slots_at_start(text_mask, real, reduced)


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
        QuickGELUActivation: FastQuickGELU,
        RobertaLayer: FastTextLayer,
        RobertaSelfAttention: FastTextAttention,
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
    example_bytes=lambda model: layer_bytes(
        1 + model.patch_grid[0] * model.patch_grid[1],
        model.config.vision_config.hidden_size,
        model.config.vision_config.intermediate_size,
        model.dtype,
    ),
    faster=frozenset({nn.Conv2d, QuickGELUActivation, RobertaLayer, RobertaSelfAttention}),
    pooled=frozenset({MeterForImageAndTextRetrieval, MeterForImagesAndTextClassification, MeterForQuestionAnswering}),
    unfit=_unfit,
)
