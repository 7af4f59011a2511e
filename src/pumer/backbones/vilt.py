"""ViLT: text and image tokens in one stream, text first; reduction between attention and feed-forward.

What the patched classes change; weights, state dict and class names stay as they are:

- patches in raster order, without ``torch.multinomial`` and without a Python loop over samples, by one matrix product;
- fused attention; the few rows of probabilities that a reducer needs are computed apart;
- tokens are reduced inside the layers that have a reducer;
- ``last_hidden_state`` is the text expanded back to its T positions, then the reduced image tokens; inside a head that
  reads the pooled vector alone the words stay where reduction left them.
"""

from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu
from transformers import ViltConfig, ViltImageProcessorPil, ViltProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.vilt.modeling_vilt import (
    TextEmbeddings,
    ViltEmbeddings,
    ViltEncoder,
    ViltForImageAndTextRetrieval,
    ViltForImagesAndTextClassification,
    ViltForMaskedLM,
    ViltForQuestionAnswering,
    ViltForTokenClassification,
    ViltLayer,
    ViltModel,
    ViltSelfAttention,
)

from pumer.backbones.base import Backbone
from pumer.backbones.layers import LayerCall, SplitLayer, attend, run_layers
from pumer.backbones.state import Reduction
from pumer.backbones.streams import (
    PatchProjection,
    autocast_off,
    expand_text,
    in_graph,
    layer_bytes,
    one_stream,
)
from pumer.functional import compact, gather_tokens
from pumer.reducers.tables import integers, ranks
from pumer.tokens import Tokens
from pumer.utils.errors import InputError

TEXT_NORM_EPS = "text_layer_norm_eps"
"""Key of the eps of the text embedding's LayerNorm, which transformers' config has no place for."""


class FastViltEmbeddings(ViltEmbeddings):
    """Text and patches, the latter in raster order at the front of a buffer of fixed length."""

    def forward(  # noqa: D102
        self,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        pixel_values: Tensor | None,
        pixel_mask: Tensor | None,
        image_embeds: Tensor | None,
        image_type: int,
        max_image_tokens: int | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        text = self.text_embeddings(input_ids=input_ids, token_type_ids=token_type_ids, inputs_embeds=inputs_embeds)
        if image_embeds is not None:
            image, mask, cell = _given_image(image_embeds, pixel_mask)
        elif pixel_values is not None:
            image, mask, cell = self.image_tokens(pixel_values, pixel_mask, max_image_tokens)
        else:
            raise InputError("give exactly one of pixel_values and image_embeds")
        kinds = self.token_type_embeddings(integers(text.device, 0, image_type))
        return text + kinds[0], image + kinds[1], mask, cell

    def image_tokens(
        self, pixel_values: Tensor, pixel_mask: Tensor | None, max_image_tokens: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embed the patches of a batch of padded images.

        Args:
            pixel_values: ``(B, C, height, width)``.
            pixel_mask: ``(B, height, width)``, 1 for real pixels, or None. An image is the smallest rectangle that
                holds its real patches; other patches inside it are left out.
            max_image_tokens: Length of the patch buffer, or None for the whole grid.

        Returns:
            ``states (B, 1 + V, D)`` with [CLS] first and no modality embedding yet; ``mask (B, 1 + V)`` bool; ``cell
            (B, 1 + V, 2)``: row and column of each patch in its image, -1 for [CLS] and free slots.

        Raises:
            InputError: If the buffer is too short for an image, an image has no real pixel (on a GPU and in graphs,
                which do not wait for masks, its answer is NaN), or the model samples patches at random.
        """
        patches = self.patch_embeddings(pixel_values)
        batch, _, rows, columns = patches.shape
        real = torch.ones(batch, rows, columns, dtype=torch.bool, device=patches.device)
        if pixel_mask is not None:
            if pixel_mask.ndim != 3 or pixel_mask.shape[0] != batch:
                shape = tuple(pixel_mask.shape)
                raise InputError(f"pixel_mask is {shape}; give ({batch}, height, width), one mask per image")
            real = interpolate(pixel_mask[:, None].float(), size=(rows, columns))[:, 0] > 0
        length = self._buffer_length(real, max_image_tokens)
        height, width = _extent(real.any(dim=2)), _extent(real.any(dim=1))
        positions = interpolate_positions(self.position_embeddings[0, 1:], height, width, rows, columns)
        index, valid = compact(real.flatten(1), length)
        states = patches.flatten(2).transpose(1, 2) + positions.to(patches.dtype)
        states = gather_tokens(states, index)
        first = (self.cls_token + self.position_embeddings[:, :1]).expand(batch, -1, -1).to(states.dtype)
        if pixel_mask is not None:
            first = _without_blanks(first, height[1] < height[0])
        states = self.dropout(torch.cat([first, states], dim=1))
        cell = torch.stack([index // columns - height[0][:, None], index % columns - width[0][:, None]], dim=-1)
        return states, *_with_cls(valid, cell)

    def _buffer_length(self, real: Tensor, max_image_tokens: int | None) -> int:
        """Slots for patches; a buffer that would lose patches is refused."""
        grid = real.shape[1] * real.shape[2]
        sampled = self.config.max_image_length
        if sampled is not None and 0 <= sampled < grid:
            raise InputError(
                f"config.max_image_length is {sampled} but the image grid has {grid} patches, of which transformers "
                f"would draw {sampled} at random; set model.config.max_image_length = -1, and max_image_tokens in the "
                "reduction config if the buffer should be bounded"
            )
        if max_image_tokens is None or max_image_tokens >= grid:
            return grid
        most = real.flatten(1).sum(dim=1).max()
        if in_graph(most):
            torch._assert_async(most <= max_image_tokens, "an image has more patches than max_image_tokens")
        elif int(most) > max_image_tokens:
            raise InputError(
                f"an image has {int(most)} patches but max_image_tokens is {max_image_tokens}; raise it or resize"
            )
        return max_image_tokens


def _without_blanks(first: Tensor, blank: Tensor) -> Tensor:
    """Refuse images without a real pixel, or make their [CLS] ``(B, 1, D)`` NaN where the check would wait."""
    if first.device.type != "cpu" or in_graph(first):
        return first.masked_fill(blank[:, None, None], torch.nan)
    try:
        torch._assert_async(~blank.any())  # raises at once on a CPU
    except RuntimeError:
        row = int(blank.int().argmax())
        raise InputError(f"pixel_mask of image {row} is 0 everywhere; give it 1 where the image is") from None
    return first


def _extent(used: Tensor) -> tuple[Tensor, Tensor]:
    """First and last used slot ``(B,)`` of an axis ``(B, slots)``."""
    slots = ranks(used.shape[1], used.device)
    return torch.where(used, slots, used.shape[1]).amin(dim=1), torch.where(used, slots, -1).amax(dim=1)


def interpolate_positions(
    table: Tensor, height: tuple[Tensor, Tensor], width: tuple[Tensor, Tensor], rows: int, columns: int
) -> Tensor:
    """Resize a square position table to each image's own grid, bilinearly with aligned corners.

    Args:
        table: ``(P * P, D)``.
        height: First and last patch row of each image, ``(B,)`` and ``(B,)``.
        width: First and last patch column.
        rows: Rows of the padded grid.
        columns: Columns of the padded grid.

    Returns:
        ``(B, rows * columns, D)``, arbitrary outside an image; at least float32.
    """
    side = isqrt(int(table.shape[0]))
    square = table.view(side, side, -1).to(torch.promote_types(table.dtype, torch.float32))
    vertical = _bilinear_weights(height, rows, side).to(square.dtype)
    horizontal = _bilinear_weights(width, columns, side).to(square.dtype)
    with autocast_off(table.device):
        resized = torch.einsum("bhp,pqd->bhqd", vertical, square)
        return torch.einsum("bwq,bhqd->bhwd", horizontal, resized).flatten(1, 2)


def _bilinear_weights(extent: tuple[Tensor, Tensor], slots: int, side: int) -> Tensor:
    """``(B, slots, side)``: weight of table entry q for position i of an axis on which each image has its extent."""
    first, last = extent
    position = ranks(slots, first.device) - first[:, None]
    entry = position * (side - 1.0) / (last - first)[:, None].clamp(min=1)
    return relu(1 - (entry[:, :, None] - ranks(side, first.device)).abs())


class FastViltSelfAttention(ViltSelfAttention):
    """Fused attention whose cues go to the layer's reducer."""

    def forward(  # noqa: D102
        self, hidden_states: Tensor, bias: Tensor | None = None, call: LayerCall | None = None
    ) -> tuple[Tensor]:
        query, key, value = self.query(hidden_states), self.key(hidden_states), self.value(hidden_states)
        dropout = self.dropout.p if self.training else 0.0
        return (attend(query, key, value, self.attention_head_size, bias, dropout, call),)


class ReducedViltLayer(SplitLayer, ViltLayer):
    """A layer in which tokens may be reduced between attention and feed-forward."""

    def forward(  # noqa: D102
        self, hidden_states: Tensor, bias: Tensor | None = None, call: LayerCall | None = None
    ) -> tuple[Tensor]:
        return (self._run(call, hidden_states, bias),)

    def _attend(self, hidden_states: Tensor, *inputs: Any) -> Tensor:
        attended: Tensor = self.attention(self.layernorm_before(hidden_states), *inputs)[0]
        return hidden_states + attended

    def _feed_forward(self, hidden_states: Tensor) -> Tensor:
        states: Tensor = self.output(self.intermediate(self.layernorm_after(hidden_states)), hidden_states)
        return states


class ReducedViltEncoder(ViltEncoder):
    """The loop over layers, with a reduction inside those that have a reducer."""

    def forward(  # noqa: D102
        self, tokens: Tokens, reduction: Reduction, output_hidden_states: bool = False, start: int = 0
    ) -> tuple[Tokens, tuple[Tensor, ...] | None]:
        hidden_states: list[Tensor] | None = [] if output_hidden_states else None
        tokens = run_layers(self.layer, "fusion", tokens, reduction, start, hidden_states=hidden_states)
        return tokens, None if hidden_states is None else (*hidden_states, tokens.states)


class ReducedViltModel(ViltModel):
    """Builds the stream, runs the encoder on it, and gives transformers' outputs back."""

    pumer_reduction: Reduction

    def forward(  # noqa: D102
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        image_embeds: Tensor | None = None,
        image_token_type_idx: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | tuple[Tensor, ...]:
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise InputError(
                "output_attentions=True is not available on a patched model, which never forms the attention matrix; "
                "call pumer.unpatch(model) first"
            )
        check_inputs(input_ids, inputs_embeds, pixel_values, image_embeds)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        reduction, layers = self.pumer_reduction, self.encoder.layer
        kind = 1 if image_token_type_idx is None else image_token_type_idx
        given = (attention_mask, input_ids, token_type_ids, inputs_embeds, pixel_values, pixel_mask, image_embeds)

        def enter(rows: slice | None) -> Tokens:
            text_mask, *here = given if rows is None else [None if x is None else x[rows] for x in given]
            text, image, image_mask, cell = self.embeddings(*here, kind, reduction.config.max_image_tokens)
            tokens = one_stream(text, text_mask, image, image_mask, reduction.reduces("fusion"))
            reduction.begin(tokens, cell)
            return tokens

        def run(tokens: Tokens, stop: int) -> Tokens:
            return run_layers(layers, "fusion", tokens, reduction, stop=stop)

        batch, words = next(x for x in (input_ids, inputs_embeds) if x is not None).shape[:2]
        tokens, start = reduction.first_layers(batch, len(layers), enter, run, whole=output_hidden_states)
        tokens, hidden_states = self.encoder(tokens, reduction, output_hidden_states, start)
        states = self.layernorm(tokens.states)
        pooled = self.pooler(states) if self.pooler is not None else None
        if reduction.expands and len(tokens.history) > 0:
            states = expand_text(states, tokens, words)
        if return_dict is False or (return_dict is None and not self.config.return_dict):
            return (states, pooled, *([] if hidden_states is None else [hidden_states]))
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled, hidden_states=hidden_states)


def check_inputs(
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    pixel_values: Tensor | None,
    image_embeds: Tensor | None,
) -> None:
    """Refuse inputs that are missing, given twice, or of different batch sizes."""
    texts, images = (input_ids, inputs_embeds), (pixel_values, image_embeds)
    for (first, second), names in ((texts, "input_ids and inputs_embeds"), (images, "pixel_values and image_embeds")):
        if (first is None) == (second is None):
            raise InputError(f"give exactly one of {names}")
    text_batch, image_batch = (next(x for x in pair if x is not None).shape[0] for pair in (texts, images))
    if text_batch != image_batch:
        raise InputError(f"the batch has {text_batch} texts but {image_batch} images; give one image per text")


def _given_image(image_embeds: Tensor, pixel_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """States, mask and cells of image tokens that the caller embedded, [CLS] first; ``pixel_mask`` is per token."""
    mask = torch.ones(image_embeds.shape[:2], dtype=torch.bool, device=image_embeds.device)
    if pixel_mask is not None:
        if pixel_mask.flatten(1).shape != mask.shape:
            raise InputError(
                f"pixel_mask is {tuple(pixel_mask.shape)} but image_embeds has {tuple(mask.shape)} tokens; beside "
                "image_embeds it must have one entry per token"
            )
        mask = pixel_mask.flatten(1) > 0
    index, valid = compact(mask, mask.shape[1])
    column = index[:, 1:] - 1
    cell = torch.stack([torch.zeros_like(column), column], dim=-1)
    return gather_tokens(image_embeds, index), *_with_cls(valid[:, 1:], cell)


def _with_cls(valid: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Put [CLS], which is real and has no cell, before the patches: ``(B, 1 + V)`` and ``(B, 1 + V, 2)``."""
    cell = cell.masked_fill(~valid[:, :, None], -1)
    first = torch.ones_like(valid[:, :1])
    return torch.cat([first, valid], dim=1), torch.cat([torch.full_like(cell[:, :1], -1), cell], dim=1)


def restore_text_norm(model: nn.Module) -> None:
    """Give the text embedding's LayerNorm the eps that ``config.text_layer_norm_eps`` names, if it names one.

    The released models use 1e-6 in the blocks (``config.layer_norm_eps``) and 1e-12 in the text embedding.
    """
    eps = getattr(getattr(model, "config", None), TEXT_NORM_EPS, None)
    for module in model.modules() if eps is not None else ():
        if isinstance(module, TextEmbeddings):
            module.LayerNorm.eps = eps


def _positions(model: Any) -> int:
    """Tokens of the longest text and of an image of the model's size, [CLS] included."""
    return int(model.config.max_position_embeddings + model.embeddings.position_embeddings.shape[1])


VILT = Backbone(
    name="vilt",
    root=ViltModel,
    classes={
        ViltModel: ReducedViltModel,
        ViltEmbeddings: FastViltEmbeddings,
        nn.Conv2d: PatchProjection,
        ViltEncoder: ReducedViltEncoder,
        ViltLayer: ReducedViltLayer,
        ViltSelfAttention: FastViltSelfAttention,
    },
    faster=frozenset({nn.Conv2d}),
    layers=lambda model: {"fusion": model.encoder.layer},
    encoders=lambda model: {"fusion": model.encoder},
    embedders=lambda model: [model.embeddings],
    widths=lambda model: {"fusion": model.config.hidden_size},
    tokens=lambda model: {"fusion": _positions(model)},
    example_bytes=lambda model: layer_bytes(
        _positions(model), model.config.hidden_size, model.config.intermediate_size, model.dtype
    ),
    heads={
        "question_answering": ViltForQuestionAnswering,
        "image_pair": ViltForImagesAndTextClassification,
        "retrieval": ViltForImageAndTextRetrieval,
    },
    word_heads=frozenset({ViltForMaskedLM, ViltForTokenClassification}),
    image_processor=ViltImageProcessorPil,
    processor=ViltProcessor,
    presets={
        "vilt-b32": lambda: ViltForQuestionAnswering(ViltConfig(layer_norm_eps=1e-6, num_labels=3129)),
        "vilt-b32-nlvr2": lambda: ViltForImagesAndTextClassification(
            ViltConfig(layer_norm_eps=1e-6, num_labels=2, num_images=2, modality_type_vocab_size=3)
        ),
    },
    pixel_mask=True,
    encoder_parameters=("vilt.embeddings.",),
    modality_embeddings="embeddings.token_type_embeddings.weight",
    head_modules=("classifier", "itm_score", "mlm_score", "rank_output"),
    old_names={r"^mlm_score\.bias$": "mlm_score.decoder.bias"},  # of transformers 4
    restore=restore_text_norm,
)
