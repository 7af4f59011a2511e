"""METER with the heads of its tasks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import MaskedLMOutput, ModelOutput, SequenceClassifierOutput
from transformers.models.vilt.modeling_vilt import ViltForImagesAndTextClassificationOutput
from transformers.utils.generic import can_return_tuple

from pumer.models.meter.configuration_meter import MeterConfig
from pumer.models.meter.encoding_meter import MeterEncoding
from pumer.models.meter.modeling_meter import MeterModel, MeterModelOutput, MeterPreTrainedModel
from pumer.utils.errors import InputError


class MeterWithHead(MeterPreTrainedModel):
    """METER with a head on one image and one text."""

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
        labels: Tensor | None = None,
        image_index: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Score every pair of a text and an image.

        Inputs as for `MeterModel`, and ``image_index (B,)``, the position of each text's image, so that an image with
        several texts is encoded once; None: one image per text.

        Returns:
            ``logits``, ``loss`` if there are labels, and ``hidden_states`` as a pair (text, image); see the class.
        """
        if image_index is not None:
            if (pixel_values is None) == (encoded_image is None):
                raise InputError("give exactly one of pixel_values and encoded_image")
            encoded = encoded_image if pixel_values is None else self.encode_image(pixel_values)
            encoded_image, pixel_values = encoded.select(image_index), None  # type: ignore[union-attr]
        output = self.meter(
            input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            inputs_embeds=inputs_embeds,
            encoded_text=encoded_text,
            encoded_image=encoded_image,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        return self.scored(output, labels, _hidden_states(output))

    def scored(self, output: MeterModelOutput, labels: Tensor | None, hidden_states: Any) -> ModelOutput:
        """The output of the head on what `MeterModel` returns."""
        raise NotImplementedError


class MeterForQuestionAnswering(MeterWithHead):
    """METER that picks an answer about an image: visual question answering, or 3-way visual entailment.

    Gives ``logits (B, num_labels)``. Its ``labels (B, num_labels)`` are one-hot or soft scores from 0 to 1; the loss is
    the binary cross-entropy, summed over the labels and averaged over the batch.

    Args:
        config: Its configuration; ``num_labels`` answers.
    """

    def __init__(self, config: MeterConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.meter = MeterModel(config)
        self.classifier = _classifier(config, images=1)
        self.post_init()

    def scored(self, output: MeterModelOutput, labels: Tensor | None, hidden_states: Any) -> SequenceClassifierOutput:
        """See `MeterWithHead`."""
        logits, loss = self.classifier(output.pooler_output), None
        if labels is not None:
            soft = labels.to(logits.device, logits.dtype)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, soft) * soft.shape[1]
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=hidden_states)


class MeterForImageAndTextRetrieval(MeterWithHead):
    """METER that scores how well an image and a text belong together: ``logits (B, 1)``.

    Over all pairs of many images and texts, encode each of them once: `encode_text`, `encode_image`, and
    `MeterEncoding.select` to make the pairs. It takes no labels: a score means something among others only, so the
    loss is the task's.

    Args:
        config: Its configuration.
    """

    def __init__(self, config: MeterConfig) -> None:
        super().__init__(config)
        self.meter = MeterModel(config)
        self.rank_output = nn.Linear(2 * config.hidden_size, 1)
        self.post_init()

    def scored(self, output: MeterModelOutput, labels: Tensor | None, hidden_states: Any) -> SequenceClassifierOutput:
        """See `MeterWithHead`."""
        if labels is not None:
            raise InputError("retrieval takes no labels: put the scores of a pair and its negatives into a loss")
        return SequenceClassifierOutput(logits=self.rank_output(output.pooler_output), hidden_states=hidden_states)


class MeterMaskedLMHead(nn.Module):
    """A layer of BERT's kind, then a score for every word."""

    def __init__(self, config: MeterConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.text_config.vocab_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(B, T, D)`` to ``(B, T, vocabulary)``."""
        return self.decoder(self.layer_norm(self.act(self.dense(hidden_states))))


class MeterForMaskedLM(MeterWithHead):
    """METER that guesses masked words from the rest of the sentence and the image.

    Gives ``logits (B, T, vocabulary)``. Its ``labels (B, T)`` are the hidden words and -100 elsewhere, for the
    cross-entropy.

    Args:
        config: Its configuration; with ``tie_word_embeddings`` the scores use the word embeddings.

    Raises:
        InputError: If they should but the text encoder has another width than the cross-modal layers.
    """

    _tied_weights_keys = {  # noqa: RUF012
        "mlm_score.decoder.weight": "meter.text_model.embeddings.word_embeddings.weight"
    }

    def __init__(self, config: MeterConfig) -> None:
        super().__init__(config)
        width = config.text_config.hidden_size
        if config.tie_word_embeddings and width != config.hidden_size:
            raise InputError(
                f"word embeddings of width {width} cannot score states of width {config.hidden_size}; set "
                "tie_word_embeddings=False"
            )
        self.meter = MeterModel(config)
        self.mlm_score = MeterMaskedLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The map from states to words."""
        return self.mlm_score.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the map from states to words."""
        self.mlm_score.decoder = new_embeddings

    def scored(self, output: MeterModelOutput, labels: Tensor | None, hidden_states: Any) -> MaskedLMOutput:
        """See `MeterWithHead`."""
        logits, loss = self.mlm_score(output.text_last_hidden_state), None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.to(logits.device).flatten())
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=hidden_states)


class MeterForImagesAndTextClassification(MeterPreTrainedModel):
    """METER that judges a sentence about several images, as in NLVR2.

    The text is encoded once; each image is fused with it, and the pooled vectors of all are classified together.

    Args:
        config: Its configuration; ``num_images`` images, each with a modality embedding of its own, ``num_labels``.

    Raises:
        InputError: If ``modality_type_vocab_size`` has not a kind for text and for each image.
    """

    def __init__(self, config: MeterConfig) -> None:
        super().__init__(config)
        if config.modality_type_vocab_size < config.num_images + 1:
            raise InputError(
                f"modality_type_vocab_size is {config.modality_type_vocab_size} but {config.num_images} images need "
                f"{config.num_images + 1}: text and each image"
            )
        self.num_labels = config.num_labels
        self.meter = MeterModel(config)
        self.classifier = _classifier(config, images=config.num_images)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoded_text: MeterEncoding | None = None,
        encoded_image: Sequence[MeterEncoding] | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> ViltForImagesAndTextClassificationOutput:
        """Score every label.

        Inputs as for `MeterModel`, but for ``pixel_values (B, images, C, height, width)``, or ``encoded_image``, one
        encoding per image of the sentence; and ``labels (B,)``, which give the cross-entropy.

        Returns:
            ``logits (B, num_labels)``, ``loss``, and ``hidden_states``, a list with a pair (text, image) per image.

        Raises:
            InputError: For another number of images than ``config.num_images``, and as `MeterModel`.
        """
        images = self._images(pixel_values, encoded_image)
        if encoded_text is None:
            encoded_text = self.encode_text(input_ids, attention_mask, inputs_embeds)
            input_ids = attention_mask = inputs_embeds = None
        outputs = [
            self.meter(
                input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                encoded_text=encoded_text,
                **image,
                image_token_type_idx=kind,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                return_dict=True,
            )
            for kind, image in enumerate(images, start=1)
        ]
        logits = self.classifier(torch.cat([output.pooler_output for output in outputs], dim=-1))
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits, labels.to(logits.device).flatten())
        states = [_hidden_states(output) for output in outputs]
        return ViltForImagesAndTextClassificationOutput(
            loss=loss, logits=logits, hidden_states=None if states[0] is None else states
        )

    def _images(
        self, pixel_values: Tensor | None, encoded_image: Sequence[MeterEncoding] | None
    ) -> list[dict[str, Any]]:
        """Each image as an argument of the model."""
        if (pixel_values is None) == (encoded_image is None):
            raise InputError("give exactly one of pixel_values and encoded_image")
        expected = self.config.num_images
        if pixel_values is not None:
            if pixel_values.ndim != 5 or pixel_values.shape[1] != expected:
                raise InputError(
                    f"pixel_values is {tuple(pixel_values.shape)} but the model reads (batch, {expected} images, "
                    "channels, height, width)"
                )
            return [{"pixel_values": image} for image in pixel_values.unbind(dim=1)]
        if isinstance(encoded_image, MeterEncoding) or len(encoded_image or ()) != expected:
            raise InputError(f"encoded_image must hold {expected} encodings, one per image of the sentence")
        return [{"encoded_image": image} for image in encoded_image or ()]


def _classifier(config: MeterConfig, images: int) -> nn.Sequential:
    """Two layers from the pooled vectors of ``images`` images to the labels."""
    width = 2 * config.hidden_size
    return nn.Sequential(
        nn.Linear(images * width, width),
        nn.LayerNorm(width),
        nn.GELU(),
        nn.Linear(width, config.num_labels),
    )


def _hidden_states(output: MeterModelOutput) -> tuple[tuple[Tensor, ...], ...] | None:
    """The text's and the image's, if they were asked for."""
    if output.text_hidden_states is None or output.image_hidden_states is None:
        return None
    return output.text_hidden_states, output.image_hidden_states
