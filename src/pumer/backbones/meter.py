"""METER: text and image in two streams; reduction after the text-to-image cross-attention, and in the vision encoder.

What the patched classes change; weights, state dict and class names stay as they are:

- patches projected by one matrix product, fused attention called directly, the vision encoder's activation in one pass;
- cross-modal layers 0, 2, 4, ... are the text layers of the pairs. A reducer there decides after their cross-attention
  to the image, and before their feed-forward part; the image tokens it leaves go into the image layer of the same pair;
- the vision encoder's layers may merge tokens between attention and feed-forward. Sizes and sources are carried into
  the cross-modal layers, through an encoding that is kept for later, too.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer, CLIPVisionModel
from transformers.models.roberta.modeling_roberta import RobertaLayer, RobertaSelfAttention

from pumer import kernels
from pumer.backbones.base import Backbone
from pumer.backbones.layers import LayerCall, SplitLayer, attend, run_layers
from pumer.backbones.state import Reduction
from pumer.backbones.streams import (
    PatchProjection,
    attention_dtype,
    expand_text,
    grid_cells,
    layer_bytes,
    slots_at_start,
    text_block,
)
from pumer.models.meter import (
    MeterConfig,
    MeterEncoding,
    MeterForImageAndTextRetrieval,
    MeterForImagesAndTextClassification,
    MeterForMaskedLM,
    MeterForQuestionAnswering,
    MeterImageProcessorPil,
    MeterModel,
    MeterModelOutput,
    MeterProcessor,
)
from pumer.models.meter.modeling_meter import MeterAttention, MeterCrossModalEncoder, MeterCrossModalLayer
from pumer.reducers.tables import integers
from pumer.tokens import Decision, Tokens, attention_bias
from pumer.utils.errors import InputError


class FastVisionAttention(CLIPAttention):
    """Fused attention over the image whose cues go to the layer's reducer."""

    def forward(  # noqa: D102
        self, hidden_states: Tensor, bias: Tensor | None = None, call: LayerCall | None = None
    ) -> tuple[Tensor, None]:
        query, key, value = self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(query, key, value, self.head_dim, bias, dropout, call)), None


class FastTextAttention(RobertaSelfAttention):
    """Fused attention over the words, without transformers' choice among attention functions at every call."""

    def forward(  # noqa: D102
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        query, key, value = self.query(hidden_states), self.key(hidden_states), self.value(hidden_states)
        dropout = self.dropout.p if self.training else 0.0
        return attend(query, key, value, self.attention_head_size, attention_mask, dropout), None


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


class ReducedVisionLayer(SplitLayer, CLIPEncoderLayer):
    """A layer in which tokens may be merged between attention and feed-forward."""

    def forward(  # noqa: D102
        self, hidden_states: Tensor, bias: Tensor | None = None, call: LayerCall | None = None
    ) -> Tensor:
        return self._run(call, hidden_states, bias)

    def _attend(self, hidden_states: Tensor, *inputs: Any) -> Tensor:
        attended: Tensor = self.self_attn(self.layer_norm1(hidden_states), *inputs)[0]
        return hidden_states + attended

    def _feed_forward(self, hidden_states: Tensor) -> Tensor:
        inner: Tensor = self.mlp(self.layer_norm2(hidden_states))
        return hidden_states + inner


class ReducedVisionModel(CLIPVisionModel):
    """The vision encoder up to its last layer, with a reduction inside the layers that have a reducer."""

    def forward(self, pixel_values: Tensor, reduction: Reduction) -> Tokens:  # noqa: D102
        tokens = image_stream(self.pre_layrnorm(self.embeddings(pixel_values)))
        return run_layers(self.encoder.layers, "vision", tokens, reduction)


def image_stream(states: Tensor) -> Tokens:
    """Image tokens ``(B, 1 + V, D)``, all real, each for itself."""
    (B, V), size = states.shape[:2], torch.ones_like(states[:, :, 0], dtype=torch.float32)
    counts = integers(states.device, 0, V).expand(B, 2)
    return Tokens((states,), size, (None,), 0, partial(_start, size[:, :0] > 0, V, False), counts=counts)


class FastMeterAttention(MeterAttention):
    """Fused attention whose cues go to the layer's reducer."""

    def forward(  # type: ignore[override]  # noqa: D102
        self, hidden_states: Tensor, context: Tensor | None, bias: Tensor | None, call: LayerCall | None = None
    ) -> Tensor:
        source = hidden_states if context is None else context
        query, key, value = self.query(hidden_states), self.key(source), self.value(source)
        dropout, size = self.config.attention_probs_dropout_prob if self.training else 0.0, self.attention_head_size
        cls_query = None if context is None else partial(self._cls_query, context)
        attended = self.dense(attend(query, key, value, size, bias, dropout, call, cls_query))
        if self.training:
            attended = self.dropout(attended)
        return self.layer_norm(attended + hidden_states)

    def _cls_query(self, image: Tensor) -> Tensor:
        """What the image's [CLS] would ask for in this layer: ``(B, H, 1, Dh)``."""
        query: Tensor = self.query(image[:, :1])
        return query.unflatten(2, (self.num_attention_heads, self.attention_head_size)).transpose(1, 2)


class ReducedMeterLayer(SplitLayer, MeterCrossModalLayer):
    """A layer in which tokens may be reduced between attention and feed-forward."""

    def forward(  # type: ignore[override]  # noqa: D102
        self,
        hidden_states: Tensor,
        context: Tensor,
        bias: Tensor | None,
        context_bias: Tensor | None,
        call: LayerCall | None = None,
    ) -> Tensor:
        return self._run(call, hidden_states, context, bias, context_bias)

    def _attend(self, hidden_states: Tensor, *inputs: Any) -> Tensor:
        context, bias, context_bias, call = inputs
        hidden_states = self.attention(hidden_states, None, bias, call)
        attended: Tensor = self.cross_attention(hidden_states, context, context_bias, call)
        return attended

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
        tokens = self.run(tokens, reduction, start, 2 * len(self.text_layers), states)
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
        """Run the pairs of the layers from ``start`` up to ``stop``.

        Args:
            tokens: As they enter.
            reduction: The state of the model.
            start: First layer.
            stop: The layer to stop before; the image layer of its pair runs as well.
            states: Gets the states that enter each pair, if given.
        """
        reducers, plain = reduction.active_reducers("fusion"), LayerCall(reduction)
        sequential = self.config.cross_modal_order == "sequential"
        (words, patches), (bias, image_bias) = tokens.streams, tokens.biases
        for pair in range((start + 1) // 2, (stop + 1) // 2):
            if states is not None:
                states.append((words, patches))
            seen, seen_bias, call = words, bias, plain
            if 2 * pair in reducers:
                call = LayerCall(reduction, ("fusion", 2 * pair), tokens.with_streams(words, patches))
            words = self.text_layers[pair](words, patches, bias, image_bias, call=call)
            if call is not plain:
                tokens, call = call.take(words), plain
                (words, patches), (bias, image_bias) = tokens.streams, tokens.biases
            if sequential:
                seen, seen_bias = words, bias
            patches = self.image_layers[pair](patches, seen, image_bias, seen_bias, call=plain)
        return tokens.with_streams(words, patches)


class ReducedMeterModel(MeterModel):
    """Carries tokens from the encoders through the pairs, and gives METER's outputs back."""

    pumer_reduction: Reduction
    encoder: ReducedMeterEncoder

    def encode_image(self, pixel_values: Tensor) -> MeterEncoding:
        """As `MeterModel.encode_image`; ``size`` and ``decisions`` report what the vision encoder's steps merged."""
        self.check_pixels(pixel_values)
        slices = self.pumer_reduction.slices(pixel_values.shape[0])
        return MeterEncoding.of_slices([self._encoded(pixel_values[rows]) for rows in slices])

    def _encoded(self, pixel_values: Tensor) -> MeterEncoding:
        tokens = self.vision_model(pixel_values, self.pumer_reduction)
        states = self.image_projection(self.vision_model.post_layernorm(tokens.states))
        places = [("vision", layer) for layer in sorted(self.pumer_reduction.active_reducers("vision"))]
        decisions = tuple(zip(places, (decision for decision, _ in tokens.history), strict=True))
        return MeterEncoding(states, tokens.mask, tokens.size if decisions else None, decisions, self.patch_grid)

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
        reduction, (rows, columns) = self.pumer_reduction, image.grid or self.patch_grid
        most, reduces = reduction.config.max_image_tokens, reduction.reduces("fusion")
        if most is not None and most < rows * columns:
            raise InputError(
                f"an image has {rows * columns} patches but max_image_tokens is {most}; raise it, or leave it out: "
                "METER's images all have one size"
            )

        def enter(part: slice | None) -> Tokens:
            words, patches = (text, image) if part is None else (text.part(part), image.part(part))
            kinds = self.modality_embeddings(integers(words.states.device, 0, image_token_type_idx))
            tokens = joined(words.states + kinds[0], words.mask, patches.states + kinds[1], reduces, patches)
            if reduction.recorder is not None:
                reduction.begin(tokens, grid_cells(rows, columns, patches.states), patches.decisions)
            return tokens

        def run(tokens: Tokens, stop: int) -> Tokens:
            return self.encoder.run(tokens, reduction, 0, stop)

        batch, depth = text.states.shape[0], 2 * len(self.encoder.text_layers)
        tokens, start = reduction.first_layers(batch, depth, enter, run, whole=output_hidden_states)
        tokens, text_states, image_states = self.encoder(tokens, reduction, output_hidden_states, start)
        words, patches = tokens.streams
        pooled = torch.cat([self.text_pooler(words), self.image_pooler(patches)], dim=-1)
        if reduction.expands and reduces:
            words = expand_text(words, tokens, text.mask.shape[1])
        return MeterModelOutput(words, patches, pooled, text_states, image_states)


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
        size, bias = image.size, image_bias(image, dtype)
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


def image_bias(image: MeterEncoding, dtype: torch.dtype) -> Tensor:
    """``(B, 1, 1, K)``, the attention bias of the tokens of an image in which the vision encoder reduced."""
    (_, last), size = image.decisions[-1], image.size
    if last.bias is not None or size is None:
        bias: Tensor = last.bias
        return bias
    return (size.log()[:, None, None] if last.proportional else attention_bias(image.mask)).to(dtype)


def _start(text_mask: Tensor, patch_slots: int, reduced: bool) -> Tensor:
    """See `slots_at_start`; all image tokens are real."""
    real = torch.ones(text_mask.shape[0], patch_slots, dtype=torch.bool, device=text_mask.device)
    return slots_at_start(text_mask, real, reduced)


def _unsupported_reason(root: Any, stack: str, layer: int) -> str | None:
    """The odd cross-modal layers are those of the image."""
    if stack == "vision" or layer % 2 == 0:
        return None
    return f"it is the image layer of pair {layer // 2}; the text layer of pair p is 2p: give {layer - 1}"


def _image_tokens(model: Any) -> int:
    return int(1 + model.patch_grid[0] * model.patch_grid[1])


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
    faster=frozenset({nn.Conv2d, QuickGELUActivation, RobertaLayer, RobertaSelfAttention}),
    layers=lambda model: {
        "vision": model.vision_model.encoder.layers,
        "fusion": [
            layer for pair in zip(model.encoder.text_layers, model.encoder.image_layers, strict=True) for layer in pair
        ],
    },
    encoders=lambda model: {"vision": model.vision_model, "fusion": model.encoder},
    embedders=lambda model: [model.text_model, model.vision_model],
    widths=lambda model: {"fusion": model.config.hidden_size, "vision": model.config.vision_config.hidden_size},
    tokens=lambda model: dict.fromkeys(("fusion", "vision"), _image_tokens(model)),
    example_bytes=lambda model: layer_bytes(
        _image_tokens(model),
        model.config.vision_config.hidden_size,
        model.config.vision_config.intermediate_size,
        model.dtype,
    ),
    unsupported_reason=_unsupported_reason,
    heads={
        "question_answering": MeterForQuestionAnswering,
        "image_pair": MeterForImagesAndTextClassification,
        "retrieval": MeterForImageAndTextRetrieval,
    },
    word_heads=frozenset({MeterForMaskedLM}),
    image_processor=MeterImageProcessorPil,
    processor=MeterProcessor,
    presets={
        "meter-b16": lambda: MeterForQuestionAnswering(MeterConfig(num_labels=3129)),
        "meter-b16-nlvr2": lambda: MeterForImagesAndTextClassification(
            MeterConfig(num_labels=2, modality_type_vocab_size=3)
        ),
    },
    separable=True,
    set_image_size=MeterModel.set_image_size,
    # projections and poolers count as cross-modal, the modality embedding as an encoder, as in the authors' code
    encoder_parameters=("meter.text_model.", "meter.vision_model.", "meter.modality_embeddings."),
    modality_embeddings="modality_embeddings.weight",
    head_modules=("classifier", "itm_score", "mlm_score", "rank_output"),
)
