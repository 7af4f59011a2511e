"""A second LayerNorm eps for ViLT, which transformers' config has no place for."""

from typing import TypeVar

from torch import nn
from transformers.models.vilt.modeling_vilt import TextEmbeddings

TEXT_NORM_EPS = "text_layer_norm_eps"

Model = TypeVar("Model", bound=nn.Module)


def restore_text_norm(model: Model) -> Model:
    """Give the text embedding's LayerNorm the eps that ``config.text_layer_norm_eps`` names, if it names one.

    The released models use 1e-6 in the blocks (``config.layer_norm_eps``) and 1e-12 in the text embedding.

    Args:
        model: A transformers ViLT model, changed in place.

    Returns:
        The same model.
    """
    eps = getattr(getattr(model, "config", None), TEXT_NORM_EPS, None)
    if eps is not None:
        for module in model.modules():
            if isinstance(module, TextEmbeddings):
                module.LayerNorm.eps = eps
    return model
