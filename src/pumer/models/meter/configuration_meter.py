"""Configuration of METER."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CLIPVisionConfig, PreTrainedConfig, RobertaConfig

from pumer.utils.errors import InputError

CROSS_MODAL_ORDERS = ("parallel", "sequential")

_ROBERTA_BASE = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
_CLIP_B16_WITHOUT_LAST_BLOCK = {"num_hidden_layers": 11, "image_size": 384, "patch_size": 16}


@strict
class MeterConfig(PreTrainedConfig):
    """Configuration of a METER model; the defaults are those of its authors' best model, 330 M parameters.

    METER (Dou et al., "An Empirical Study of Training End-to-End Vision-and-Language Transformers", CVPR 2022) encodes
    words with RoBERTa and an image with CLIP's vision transformer, then runs both through pairs of cross-modal layers.

    Attributes:
        text_config: RoBERTa's configuration, or a dict of what differs from roberta-base.
        vision_config: CLIP's vision configuration, or a dict of what differs from ViT-B/16 at 384 px with its last
            block left out.
        hidden_size: Width D of the cross-modal layers.
        num_attention_heads: Their heads.
        intermediate_size: Width of their feed-forward networks.
        num_cross_modal_pairs: Pairs of one text and one image layer.
        hidden_act: Activation of the feed-forward networks.
        hidden_dropout_prob: Dropout after each linear map that ends a sub-layer.
        attention_probs_dropout_prob: Dropout of the attention probabilities.
        layer_norm_eps: Of the cross-modal layers; RoBERTa and CLIP have their own.
        cross_modal_order: "parallel": both layers of a pair read the states that entered the pair, as in METER.
            "sequential": the image layer reads the text layer's output, as in the released PuMer checkpoints.
        modality_type_vocab_size: Kinds of tokens: text, image, and 3 where there is a second image.
        initializer_range: Standard deviation of random weights.
        num_images: Images that `MeterForImagesAndTextClassification` sees at once.
        tie_word_embeddings: Whether `MeterForMaskedLM` shares its decoder with the word embeddings.

    Raises:
        InputError: For a ``cross_modal_order`` of another name, or heads that do not divide the width.

    Example:
        >>> config = MeterConfig(vision_config={"image_size": 288}, num_labels=3129)
        >>> config.image_size, config.patch_size, config.text_config.num_hidden_layers
        (288, 16, 12)
    """

    model_type = "meter"
    sub_configs = {"text_config": RobertaConfig, "vision_config": CLIPVisionConfig}  # noqa: RUF012

    text_config: Any = None
    vision_config: Any = None
    hidden_size: int = 768
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    num_cross_modal_pairs: int = 6
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    layer_norm_eps: float = 1e-12
    cross_modal_order: str = "parallel"
    modality_type_vocab_size: int = 2
    initializer_range: float = 0.02
    num_images: int = 2
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None or isinstance(self.text_config, dict):
            self.text_config = RobertaConfig(**_ROBERTA_BASE | (self.text_config or {}))
        if self.vision_config is None or isinstance(self.vision_config, dict):
            self.vision_config = CLIPVisionConfig(**_CLIP_B16_WITHOUT_LAST_BLOCK | (self.vision_config or {}))
        if self.cross_modal_order not in CROSS_MODAL_ORDERS:
            raise InputError(
                f"cross_modal_order {self.cross_modal_order!r} is unknown; allowed: {', '.join(CROSS_MODAL_ORDERS)}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        super().__post_init__(**kwargs)

    @property
    def image_size(self) -> int:
        """Pixels along a side of the square input image."""
        return int(self.vision_config.image_size)

    @property
    def patch_size(self) -> int:
        """Pixels along a side of a patch."""
        return int(self.vision_config.patch_size)

    @property
    def num_channels(self) -> int:
        """Colours of a pixel."""
        return int(self.vision_config.num_channels)

    @property
    def max_position_embeddings(self) -> int:
        """Words of the longest text, special tokens counted: RoBERTa keeps its first positions for padding."""
        return int(self.text_config.max_position_embeddings - self.text_config.pad_token_id - 1)
