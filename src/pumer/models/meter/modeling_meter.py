"""METER (Dou et al., CVPR 2022): two uni-modal encoders, then pairs of cross-modal layers.

The uni-modal encodings are separable: `MeterModel.encode_text` and `MeterModel.encode_image` need nothing of the other
modality, and `MeterModel.fuse` brings them together. An image that is asked many questions is encoded once.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel, PreTrainedModel, RobertaModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import can_return_tuple

from pumer.models.meter.configuration_meter import MeterConfig
from pumer.models.meter.encoding_meter import MeterEncoding
from pumer.utils.errors import InputError

_WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


@dataclass
class MeterModelOutput(ModelOutput):
    """What `MeterModel` gives.

    Attributes:
        text_last_hidden_state: ``(B, T, D)``.
        image_last_hidden_state: ``(B, V, D)``, [CLS] first.
        pooler_output: ``(B, 2 D)``, text then image.
        text_hidden_states: States that enter the first pair, then those after each pair; only if asked for.
        image_hidden_states: The same of the image.
    """

    text_last_hidden_state: Tensor | None = None
    image_last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    text_hidden_states: tuple[Tensor, ...] | None = None
    image_hidden_states: tuple[Tensor, ...] | None = None


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention in plain operations: ``(B, N, H, Dh)``, and the probabilities ``(B, H, N, M)``."""
    logits = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        logits = logits + attention_mask
    probabilities = logits.softmax(dim=-1)
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


class MeterAttention(nn.Module):
    """Self- or cross-attention with its output projection, residual connection and LayerNorm."""

    def __init__(self, config: MeterConfig) -> None:
        super().__init__()
        self.config = config
        self.num_attention_heads = config.num_attention_heads
        self.attention_head_size = config.hidden_size // config.num_attention_heads
        self.scaling = self.attention_head_size**-0.5
        self.is_causal = False
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: Tensor, context: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Attend to ``context``, or to the states themselves.

        Args:
            hidden_states: ``(B, N, D)``.
            context: ``(B, M, D)`` that give keys and values; None: ``hidden_states``.
            attention_mask: ``(B, 1, 1, M)``, added to the logits; None: every token is seen.

        Returns:
            ``(B, N, D)``, normalised.
        """
        context = hidden_states if context is None else context
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, _ = attend(
            self,
            self._heads(self.query(hidden_states)),
            self._heads(self.key(context)),
            self._heads(self.value(context)),
            attention_mask,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.scaling,
        )
        return self.layer_norm(self.dropout(self.dense(attended.flatten(2))) + hidden_states)

    def _heads(self, states: Tensor) -> Tensor:
        """``(B, N, D)`` to ``(B, H, N, Dh)``."""
        return states.unflatten(2, (self.num_attention_heads, self.attention_head_size)).transpose(1, 2)


class MeterCrossModalLayer(GradientCheckpointingLayer):
    """Self-attention, attention to the other modality, feed-forward; LayerNorm after each, as in BERT."""

    def __init__(self, config: MeterConfig) -> None:
        super().__init__()
        self.attention = MeterAttention(config)
        self.cross_attention = MeterAttention(config)
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: Tensor,
        context: Tensor,
        attention_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Run the layer on the states ``(B, N, D)`` of one modality.

        Args:
            hidden_states: Of this modality.
            context: ``(B, M, D)`` of the other one.
            attention_mask: ``(B, 1, 1, N)``, added to the logits of the self-attention, or None.
            context_mask: ``(B, 1, 1, M)``, added to the logits of the cross-attention, or None.
        """
        hidden_states = self.attention(hidden_states, attention_mask=attention_mask)
        hidden_states = self.cross_attention(hidden_states, context, context_mask)
        widened = self.act(self.intermediate(hidden_states))
        return self.layer_norm(self.dropout(self.output(widened)) + hidden_states)


class MeterCrossModalEncoder(nn.Module):
    """The pairs of cross-modal layers."""

    def __init__(self, config: MeterConfig) -> None:
        super().__init__()
        self.config = config
        pairs = range(config.num_cross_modal_pairs)
        self.text_layers = nn.ModuleList([MeterCrossModalLayer(config) for _ in pairs])
        self.image_layers = nn.ModuleList([MeterCrossModalLayer(config) for _ in pairs])

    def forward(
        self,
        text: Tensor,
        image: Tensor,
        text_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        """Run every pair.

        Args:
            text: ``(B, T, D)``.
            image: ``(B, V, D)``.
            text_mask: ``(B, 1, 1, T)``, added to the logits, or None.
            image_mask: ``(B, 1, 1, V)``, added to the logits, or None.
            output_hidden_states: Whether to keep the states between the pairs.

        Returns:
            Text ``(B, T, D)``, image ``(B, V, D)``, and their states before the first and after each pair, or None.
        """
        texts, images = [text], [image]
        for text_layer, image_layer in zip(self.text_layers, self.image_layers, strict=True):
            entered = text
            text = text_layer(text, image, text_mask, image_mask)
            seen = text if self.config.cross_modal_order == "sequential" else entered
            image = image_layer(image, seen, image_mask, text_mask)
            texts.append(text)
            images.append(image)
        return text, image, *((tuple(texts), tuple(images)) if output_hidden_states else (None, None))


class MeterPooler(nn.Module):
    """The first token, through one tanh layer."""

    def __init__(self, config: MeterConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(B, N, D)`` to ``(B, D)``."""
        return self.dense(hidden_states[:, 0]).tanh()


class MeterPreTrainedModel(PreTrainedModel):
    """What every METER model shares: loading at any image size, and the separate encoders."""

    config_class = MeterConfig
    base_model_prefix = "meter"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["MeterCrossModalLayer", "RobertaEmbeddings", "RobertaLayer", "CLIPEncoderLayer"]  # noqa: RUF012

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None, *args: Any, config: Any = None, **kwargs: Any
    ) -> Any:
        """As transformers', and the position table is interpolated if another image size is asked for.

        Args:
            pretrained_model_name_or_path: Folder or hub name.
            *args: As transformers'.
            config: As transformers'; its ``vision_config.image_size`` may differ from the checkpoint's.
            **kwargs: As transformers', among them ``vision_config={"image_size": 480}``.

        Raises:
            InputError: If the new size is no multiple of the patch size.

        Example:
            >>> model = MeterModel.from_pretrained(folder, vision_config={"image_size": 480})
        """
        name, vision = pretrained_model_name_or_path, kwargs.get("vision_config") or {}
        given = isinstance(config, MeterConfig)
        wanted = config.image_size if given else vision.get("image_size")
        if wanted is None or name is None:
            return super().from_pretrained(name, *args, config=config, **kwargs)
        where = {key: kwargs[key] for key in _WHERE if key in kwargs}
        saved = MeterConfig.from_pretrained(config if config is not None and not given else name, **where).image_size
        if given:
            config = copy.deepcopy(config)
            config.vision_config.image_size = saved
        else:
            kwargs["vision_config"] = vision | {"image_size": saved}
        loaded = super().from_pretrained(name, *args, config=config, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
        model.base_model.set_image_size(wanted)
        return loaded

    def encode_text(self, *args: Any, **kwargs: Any) -> MeterEncoding:
        """See `MeterModel.encode_text`."""
        return self.base_model.encode_text(*args, **kwargs)

    def encode_image(self, pixel_values: Tensor) -> MeterEncoding:
        """See `MeterModel.encode_image`."""
        return self.base_model.encode_image(pixel_values)


class MeterModel(MeterPreTrainedModel):
    """METER without a head.

    Args:
        config: Its configuration.

    Example:
        >>> model = MeterModel(MeterConfig())
        >>> image = model.encode_image(pixel_values)  # (1, 3, 384, 384)
        >>> texts = model.encode_text(input_ids, attention_mask)  # five questions about it
        >>> model.fuse(texts, image.select([0] * 5)).pooler_output.shape
        torch.Size([5, 1536])
    """

    def __init__(self, config: MeterConfig) -> None:
        super().__init__(config)
        self.text_model = RobertaModel._from_config(config.text_config, add_pooling_layer=False)
        self.vision_model = CLIPVisionModel._from_config(config.vision_config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.hidden_size)
        self.image_projection = nn.Linear(config.vision_config.hidden_size, config.hidden_size)
        self.modality_embeddings = nn.Embedding(config.modality_type_vocab_size, config.hidden_size)
        self.encoder = MeterCrossModalEncoder(config)
        self.text_pooler = MeterPooler(config)
        self.image_pooler = MeterPooler(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.text_model.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.text_model.embeddings.word_embeddings = value

    def set_image_size(self, image_size: int) -> None:
        """Read images of another size from now on: the position table is interpolated, bicubically; [CLS] stays.

        Args:
            image_size: Pixels along a side.

        Raises:
            InputError: If it is no multiple of the patch size.
        """
        patch, embeddings = self.config.patch_size, self.vision_model.embeddings
        if image_size < patch or image_size % patch:
            raise InputError(f"image_size {image_size} is not a multiple of the patch size {patch}")
        if image_size == self.config.image_size:
            return
        table = embeddings.position_embedding.weight
        resized = resize_positions(table.detach(), image_size // patch)
        embeddings.position_embedding = nn.Embedding.from_pretrained(resized, freeze=not table.requires_grad)
        embeddings.image_size = image_size
        embeddings.num_positions = len(resized)
        embeddings.num_patches = len(resized) - 1
        embeddings.position_ids = torch.arange(len(resized), device=table.device)[None]
        self.config.vision_config.image_size = image_size

    def encode_text(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> MeterEncoding:
        """Run the text encoder and its projection; nothing of an image is needed.

        Args:
            input_ids: ``(B, T)`` word ids.
            attention_mask: ``(B, T)``, 1 for words and 0 for padding; None: all words.
            inputs_embeds: ``(B, T, width of the text encoder)`` instead of ``input_ids``.

        Raises:
            InputError: Unless exactly one of ``input_ids`` and ``inputs_embeds`` is given.
        """
        words = input_ids if inputs_embeds is None else inputs_embeds
        if words is None or (input_ids is not None and inputs_embeds is not None):
            raise InputError("give exactly one of input_ids, inputs_embeds and encoded_text")
        if attention_mask is None:
            mask = torch.ones(words.shape[:2], dtype=torch.bool, device=words.device)
        else:
            mask = attention_mask > 0
        bias = attention_bias(mask, self.dtype)  # not that of a linear layer, which may be quantised
        encoded = self.text_model(input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=bias)
        return MeterEncoding(self.text_projection(encoded.last_hidden_state), mask)

    def encode_image(self, pixel_values: Tensor) -> MeterEncoding:
        """Run the vision encoder, its last LayerNorm on every token, and its projection; no text is needed.

        Args:
            pixel_values: ``(B, C, height, width)``, square and of the size of the position table.

        Raises:
            InputError: For images of another size.
        """
        self.check_pixels(pixel_values)
        encoded = self.vision_model(pixel_values=pixel_values).last_hidden_state
        states = self.image_projection(self.vision_model.post_layernorm(encoded))
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return MeterEncoding(states, mask, grid=self.patch_grid)

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Patch rows and columns of an image."""
        rows = self.config.image_size // self.config.patch_size
        return rows, rows

    def check_pixels(self, pixel_values: Tensor) -> None:
        """Refuse images that do not have the size of the position table."""
        side = self.config.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[2:] != (side, side):
            raise InputError(
                f"pixel_values is {tuple(pixel_values.shape)} but the model reads (batch, channels, {side}, {side}); "
                "resize the images, or load the model with vision_config={'image_size': ...}"
            )

    def fuse(
        self,
        text: MeterEncoding,
        image: MeterEncoding,
        image_token_type_idx: int = 1,
        output_hidden_states: bool = False,
    ) -> MeterModelOutput:
        """Run the cross-modal layers on one text and one image per sample.

        Args:
            text: From `encode_text`.
            image: From `encode_image`.
            image_token_type_idx: 1, or 2 for the second of two images.
            output_hidden_states: Whether to return the states between the pairs.

        Raises:
            InputError: If there are not as many texts as images, no embedding for this kind of token, or an image that
                a patched model merged.
        """
        self.check_pair(text, image, image_token_type_idx)
        if image.size is not None:
            raise InputError("the image was merged by a patched model; fuse it with a model that is patched alike")
        kinds = self.modality_embeddings(torch.tensor([0, image_token_type_idx], device=text.states.device))
        text_states, image_states, texts, images = self.encoder(
            text.states + kinds[0],
            image.states + kinds[1],
            attention_bias(text.mask, text.states.dtype),
            None,  # images have no padding
            output_hidden_states,
        )
        pooled = torch.cat([self.text_pooler(text_states), self.image_pooler(image_states)], dim=-1)
        return MeterModelOutput(text_states, image_states, pooled, texts, images)

    def check_pair(self, text: MeterEncoding, image: MeterEncoding, image_token_type_idx: int) -> None:
        """Refuse encodings that cannot be fused."""
        texts, images = text.states.shape[0], image.states.shape[0]
        most = self.config.modality_type_vocab_size - 1
        if texts != images:
            raise InputError(
                f"the batch has {texts} texts but {images} images; give one image per text, with select() of either"
            )
        if not 1 <= image_token_type_idx <= most:
            raise InputError(
                f"image_token_type_idx {image_token_type_idx} has no embedding; allowed: 1 to {most} "
                "(config.modality_type_vocab_size - 1)"
            )

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoded_text: MeterEncoding | None = None,
        encoded_image: MeterEncoding | None = None,
        image_token_type_idx: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> MeterModelOutput:
        """Encode what is not encoded yet, then fuse; `encode_text`, `encode_image` and `fuse` describe their arguments.

        Args:
            input_ids: As for `encode_text`.
            attention_mask: The same.
            token_type_ids: Ignored; some tokenizers give them.
            pixel_values: As for `encode_image`.
            inputs_embeds: As for `encode_text`.
            encoded_text: From `encode_text`, instead of ``input_ids`` and ``attention_mask``.
            encoded_image: From `encode_image`, instead of ``pixel_values``.
            image_token_type_idx: 1 (the default), or 2 for the second of two images.
            output_attentions: Not available.
            output_hidden_states: Whether to return the states between the pairs.
            **kwargs: ``return_dict`` only.

        Raises:
            InputError: If an input is missing or given twice, and for what cannot be fused.
        """
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise InputError("output_attentions=True is not available: METER's outputs hold no attentions")
        if encoded_text is None:
            encoded_text = self.encode_text(input_ids, attention_mask, inputs_embeds)
        elif input_ids is not None or inputs_embeds is not None:
            raise InputError("give exactly one of input_ids, inputs_embeds and encoded_text")
        elif attention_mask is not None:
            raise InputError("give no attention_mask beside encoded_text, which has its own")
        if (pixel_values is None) == (encoded_image is None):
            raise InputError("give exactly one of pixel_values and encoded_image")
        if pixel_values is not None:
            encoded_image = self.encode_image(pixel_values)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        kind = 1 if image_token_type_idx is None else image_token_type_idx
        return self.fuse(encoded_text, encoded_image, kind, output_hidden_states)  # type: ignore[arg-type]


def attention_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Of a mask ``(B, N)``: ``(B, 1, 1, N)``, 0, and the lowest number for padding."""
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(~mask, torch.finfo(dtype).min)[:, None, None]


def resize_positions(table: Tensor, rows: int) -> Tensor:
    """Resize a square position table, bicubically; the position of [CLS] stays.

    Args:
        table: ``(1 + P * P, D)``, [CLS] first.
        rows: Patch rows, and columns, of the new image size.

    Returns:
        ``(1 + rows * rows, D)``, in the table's dtype.
    """
    side = round((table.shape[0] - 1) ** 0.5)
    if side == rows:
        return table
    square = table[1:].float().view(1, side, side, -1).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(square, size=(rows, rows), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], resized.permute(0, 2, 3, 1).flatten(1, 2)[0].to(table.dtype)])
