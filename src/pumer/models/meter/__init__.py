"""METER: RoBERTa and CLIP's vision transformer, fused by pairs of cross-modal layers."""

from pumer.models.meter.configuration_meter import MeterConfig
from pumer.models.meter.modeling_meter import (
    MeterEncoding,
    MeterForQuestionAnswering,
    MeterModel,
    MeterModelOutput,
    MeterPreTrainedModel,
)

__all__ = [
    "MeterConfig",
    "MeterEncoding",
    "MeterForQuestionAnswering",
    "MeterModel",
    "MeterModelOutput",
    "MeterPreTrainedModel",
]
